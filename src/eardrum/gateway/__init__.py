"""The gateway: names, queues and processes. It never touches a sample."""
