"""The server: the ASGI application, uvicorn's connections, and the life cycle around them."""
