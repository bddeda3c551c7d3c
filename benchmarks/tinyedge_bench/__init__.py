"""Speed and quality measurements that a person can decide by."""
