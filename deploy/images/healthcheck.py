"""Exits with 0 if the server in this container answers: the HEALTHCHECK of the images. Needs nothing but Python."""

import os
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection

TIMEOUT_S = 4


def is_healthy(connection: HTTPConnection) -> bool:
    """Whether the server answers at all: it says 200 even if a model has failed, because a restart would stop all others too."""
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def build_https_connection(port: int) -> HTTPSConnection:
    """Build a connection that trusts any certificate: the server's is made for its name and not for 127.0.0.1."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=context)


if __name__ == "__main__":
    port = int(os.environ.get("EARDRUM_PORT") or 8100)
    healthy = is_healthy(HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)) or is_healthy(build_https_connection(port))
    sys.exit(not healthy)
