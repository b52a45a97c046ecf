"""The commands beside Lightning's: check, convert, download, plan, models and describe."""
