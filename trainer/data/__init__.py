"""Data sets: made, read, checked.  Each module is one kind of data; nothing here knows a model or a log."""
