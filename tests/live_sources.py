"""Live sources on loopback: a transport stream over TCP and over RTSP, and pictures over HTTP as cameras send them."""

import io
import socket
import struct
from contextlib import contextmanager, suppress
from threading import Event, Thread

import numpy as np
from PIL import Image

from tests.videos import plain, write_video


@contextmanager
def serving(handle):
    """Give the port of a server that calls `handle` with each connection, in a thread."""
    server = socket.create_server(("127.0.0.1", 0))
    ended = Event()

    def accept():
        while not ended.is_set():
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, suppress(OSError):  # the reader may go at any time
                handle(connection, ended)

    thread = Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        ended.set()
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        server.close()
        thread.join(5)


def transport_stream(folder, shots):
    """The bytes of an MPEG transport stream."""
    return write_video(folder / "stream.ts", shots, format="mpegts").read_bytes()


def jpeg(level):
    content = io.BytesIO()
    Image.fromarray(plain(level)).save(content, "JPEG")
    return content.getvalue()


def camera(levels, between):
    """A handler that sends a picture for each of `levels`, and calls `between` with its number before each."""

    def handle(connection, ended):
        connection.recv(4096)
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\nConnection: close\r\n\r\n"
        )
        for number, level in enumerate(levels):
            if ended.is_set():
                return
            between(number)
            picture = jpeg(level)
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
            connection.sendall(head.encode() + picture + b"\r\n")
        connection.sendall(b"--frame--\r\n")

    return handle


def rtsp(stream):
    """A handler that is an RTSP camera: it plays a transport stream as RTP in the same connection."""

    def handle(connection, ended):
        file = connection.makefile("rb")
        while not ended.is_set() and (first := file.readline()):
            verb, url, _ = first.decode().split()
            headers = {}
            while line := file.readline().strip():
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            answer = {"OPTIONS": "Public: DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"}.get(verb, "")
            body = ""
            if verb == "DESCRIBE":
                body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:*\r\n"
                answer = f"Content-Base: {url}/\r\nContent-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
            elif verb == "SETUP":
                answer = f"Transport: {headers['transport']}\r\n"
            head = f"RTSP/1.0 200 OK\r\nCSeq: {headers['cseq']}\r\nSession: 1\r\n{answer}\r\n"
            connection.sendall((head + body).encode())
            if verb == "PLAY":
                for number, at in enumerate(range(0, len(stream), 7 * 188)):
                    packet = (
                        struct.pack("!BBHII", 0x80, 33, number & 0xFFFF, number * 90, 1)
                        + stream[at : at + 7 * 188]
                    )
                    connection.sendall(b"$\0" + struct.pack("!H", len(packet)) + packet)

    return handle


def levels_of(pictures):
    return [int(np.asarray(picture).mean().round()) for picture in pictures]
