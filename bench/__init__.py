"""Measures the services beside bare yardsticks on the same machine, in the same minute; it judges and gates nothing."""
