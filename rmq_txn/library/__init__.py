"""The native library `librocketmq.so`: where it belongs, whether it is there, how it gets there."""
