"""The rules of the fan-out: what each stream is told next. Pure: no clock, no socket, no event loop."""
