"""Sessions of other libraries in a transaction of ours; each module needs its library, and is an extra."""
