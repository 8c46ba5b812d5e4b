"""Data sets, one module each: a new file here is a new data set (see ``_reader.py``)."""
