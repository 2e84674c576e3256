"""Models of one's own measured on recordings of one's own: errors, throughput, latency, memory, loading."""
