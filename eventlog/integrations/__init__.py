"""Logs what other libraries' trainers report.  Each module is a leaf that is named for its library, and needs it:

from eventlog.integrations.transformers import EventlogCallback
from eventlog.integrations.lightning import EventlogLogger
from eventlog.integrations.accelerate import EventlogTracker
"""
