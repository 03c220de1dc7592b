"""
Questions to name servers and brokers in RocketMQ's own protocol, for what the native client can't ask.

`client.py` asks one server; the other modules say what is asked, of whom, and what an answer means.
"""
