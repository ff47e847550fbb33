"""The servers that the documents speak of: python3 stage.py FOLDER CERTIFICATE KEY serves a folder on 127.0.0.2, plain on the
port 80 and by TLS on 443. Says `ready` when it does."""

import functools
import http.server
import ssl
import sys
import threading

folder, certificate, key = sys.argv[1:]


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


handler = functools.partial(Quiet, directory=folder)
plain = http.server.ThreadingHTTPServer(("127.0.0.2", 80), handler)
secure = http.server.ThreadingHTTPServer(("127.0.0.2", 443), handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
secure.socket = context.wrap_socket(secure.socket, server_side=True)
threading.Thread(target=plain.serve_forever, daemon=True).start()
threading.Thread(target=secure.serve_forever, daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
