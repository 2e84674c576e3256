"""The gateway: models, scheduling, processes and upstreams. It never decodes audio."""
