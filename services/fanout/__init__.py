"""The fan-out service: streams each master's signals from the log to everyone who follows it."""
