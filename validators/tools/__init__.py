"""Commands beside the check: compare, diff, forecast, inspect."""
