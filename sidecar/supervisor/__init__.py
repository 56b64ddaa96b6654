"""The process that owns the socket, the handshake and the server's life. It loads no web framework, no ML library."""
