"""Makes logs of ours of what other programs recorded.  Each module is a leaf: nothing else imports it, and its library
is needed only where it is used."""
