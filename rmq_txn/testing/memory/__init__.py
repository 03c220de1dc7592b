"""A broker in this process, for unit tests of services; `rmq_txn.testing.MemoryBroker` is its public name."""
