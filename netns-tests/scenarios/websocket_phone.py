"""A phone as in a browser, without the browser: SIP over WebSocket (RFC 7118) by the library
`websockets`, plain RTP beside it.

    websocket_phone.py URL CA USER ADDRESS call PEER    registers, calls, talks, hangs up
    websocket_phone.py URL CA USER ADDRESS again PEER   the same, with a re-INVITE after half of the talk
    websocket_phone.py URL CA USER ADDRESS cancel PEER  registers, calls, gives up while it rings
    websocket_phone.py URL CA USER ADDRESS wait         registers, answers, talks until the BYE
    websocket_phone.py URL CA USER ADDRESS ring         registers, rings until the CANCEL

It knows its private ADDRESS only, for media; its Contact has a host that does not exist, as a
browser's has. The last line it prints is JSON: how many RTP packets it has heard.
"""

import asyncio
import json
import random
import re
import socket
import ssl
import struct
import sys

import websockets

DOMAIN = "example.com"
PACKETS = 100
PATIENCE = 15


def token():
    return f"{random.getrandbits(64):016x}"


class Message:
    def __init__(self, text):
        head, _, self.body = text.partition("\r\n\r\n")
        self.start, *lines = head.split("\r\n")
        self.fields = [tuple(part.strip() for part in line.split(":", 1)) for line in lines]

    def all(self, name):
        return [value for known, value in self.fields if known.lower() == name.lower()]

    def one(self, name):
        return self.all(name)[0]

    def status(self):
        return int(self.start.split()[1]) if self.start.startswith("SIP/2.0") else None

    def uri(self, name):
        return re.search(r"<([^>]*)>", self.one(name)).group(1)


class Phone:
    def __init__(self, ws, user, address):
        self.ws, self.user = ws, user
        self.aor = f"sip:{user}@{DOMAIN}"
        self.host = f"{token()}.invalid"
        self.contact = f"<sip:{user}@{self.host};transport=ws>"
        self.rtp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.rtp.bind((address, 0))
        self.rtp.setblocking(False)
        self.address, self.heard = address, 0

    def sdp(self):
        port = self.rtp.getsockname()[1]
        return (
            f"v=0\r\no=- 1 1 IN IP4 {self.address}\r\ns=-\r\nc=IN IP4 {self.address}\r\n"
            f"t=0 0\r\nm=audio {port} RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n"
        )

    async def send(self, start, fields, body=""):
        fields = fields + ([("Content-Type", "application/sdp")] if body else [])
        fields = fields + [("Content-Length", str(len(body)))]
        head = "".join(f"{name}: {value}\r\n" for name, value in fields)
        await self.ws.send(f"{start}\r\n{head}\r\n{body}")

    async def receive(self):
        text = await asyncio.wait_for(self.ws.recv(), PATIENCE)
        print(text.split("\r\n")[0], flush=True)
        return Message(text)

    def via(self):
        return ("Via", f"SIP/2.0/WS {self.host};branch=z9hG4bK{token()}")

    async def ask(self, method, uri, fields, body=""):
        """Sends a request and waits for its final answer."""
        fields = [self.via(), ("Max-Forwards", "70")] + fields
        await self.send(f"{method} {uri} SIP/2.0", fields, body)
        while True:
            message = await self.receive()
            if (message.status() or 0) >= 200 and message.one("CSeq").endswith(method):
                if message.status() != 200:
                    sys.exit(f"{method}: {message.start}")
                return message

    async def answer(self, request, status, tag, body=""):
        copied = ("via", "record-route", "from", "call-id", "cseq")
        fields = [field for field in request.fields if field[0].lower() in copied]
        to = request.one("To")
        fields.append(("To", to if "tag=" in to else f"{to};tag={tag}"))
        fields.append(("Contact", self.contact))
        await self.send(f"SIP/2.0 {status}", fields, body)

    async def register(self):
        fields = [
            ("From", f"<{self.aor}>;tag={token()}"),
            ("To", f"<{self.aor}>"),
            ("Call-ID", token()),
            ("CSeq", "1 REGISTER"),
            ("Contact", f"{self.contact};expires=120"),
        ]
        await self.ask("REGISTER", f"sip:{DOMAIN}", fields)
        print("registered", flush=True)

    async def call(self, peer, again=False):
        me, call_id = ("From", f"<{self.aor}>;tag={token()}"), ("Call-ID", token())
        uri = f"sip:{peer}@{DOMAIN}"
        fields = [me, ("To", f"<{uri}>"), call_id, ("Contact", self.contact)]
        answer = await self.ask("INVITE", uri, fields + [("CSeq", "1 INVITE")], self.sdp())
        routes = [("Route", value) for value in reversed(answer.all("Record-Route"))]
        dialog = routes + [me, ("To", answer.one("To")), call_id, ("Max-Forwards", "70")]
        target = answer.uri("Contact")
        ack = [self.via()] + dialog + [("CSeq", "1 ACK")]
        await self.send(f"ACK {target} SIP/2.0", ack)
        await self.talk(answer.body, PACKETS)
        number = 2
        if again:
            fields = dialog[:-1] + [("Contact", self.contact), ("CSeq", f"{number} INVITE")]
            answer = await self.ask("INVITE", target, fields, self.sdp())
            ack = [self.via()] + dialog + [("CSeq", f"{number} ACK")]
            await self.send(f"ACK {target} SIP/2.0", ack)
            await self.talk(answer.body, PACKETS)
            number += 1
        await self.ask("BYE", target, dialog[:-1] + [("CSeq", f"{number} BYE")])

    async def cancel(self, peer):
        uri = f"sip:{peer}@{DOMAIN}"
        via, fields = self.via(), [
            ("Max-Forwards", "70"),
            ("From", f"<{self.aor}>;tag={token()}"),
            ("To", f"<{uri}>"),
            ("Call-ID", token()),
        ]
        invite = [via] + fields + [("Contact", self.contact), ("CSeq", "1 INVITE")]
        await self.send(f"INVITE {uri} SIP/2.0", invite, self.sdp())
        while (await self.receive()).status() != 180:
            pass
        await self.send(f"CANCEL {uri} SIP/2.0", [via] + fields + [("CSeq", "1 CANCEL")])
        answers = {}
        while len(answers) < 2:
            message = await self.receive()
            answers[message.one("CSeq")] = message
        expected = {"1 CANCEL": 200, "1 INVITE": 487}
        if {cseq: message.status() for cseq, message in answers.items()} != expected:
            sys.exit(f"CANCEL: {[message.start for message in answers.values()]}")
        fields[2] = ("To", answers["1 INVITE"].one("To"))
        await self.send(f"ACK {uri} SIP/2.0", [via] + fields + [("CSeq", "1 ACK")])

    async def ring(self):
        tag, invite = token(), None
        while True:
            request = await self.receive()
            method = request.start.split()[0]
            if method == "INVITE":
                invite = request
                await self.answer(request, "180 Ringing", tag)
            elif method == "CANCEL":
                await self.answer(request, "200 OK", tag)
                await self.answer(invite, "487 Request Terminated", tag)
            elif method == "ACK":
                return

    async def wait(self):
        tag, talking = token(), None
        while True:
            request = await self.receive()
            method = request.start.split()[0]
            if method == "INVITE":
                if not talking:
                    await self.answer(request, "180 Ringing", tag)
                else:
                    talking.cancel()
                await self.answer(request, "200 OK", tag, self.sdp())
                talking = asyncio.create_task(self.talk(request.body, 60 * 50))
            elif method == "BYE":
                await self.answer(request, "200 OK", tag)
                talking.cancel()
                return

    async def talk(self, sdp, packets):
        host = re.search(r"c=IN IP4 (\S+)", sdp).group(1)
        port = int(re.search(r"m=audio (\d+)", sdp).group(1))
        source = random.getrandbits(32)
        for number in range(packets):
            header = struct.pack("!BBHII", 0x80, 0, number, number * 160, source)
            self.rtp.sendto(header + b"\xff" * 160, (host, port))
            await asyncio.sleep(0.02)
            self.listen()

    def listen(self):
        try:
            while True:
                self.rtp.recv(2048)
                self.heard += 1
        except BlockingIOError:
            pass


async def main():
    url, authority, user, address, what, *peer = sys.argv[1:]
    tls = ssl.create_default_context(cafile=authority) if url.startswith("wss:") else None
    async with websockets.connect(url, subprotocols=["sip"], ssl=tls, origin="https://example.com") as ws:
        assert ws.subprotocol == "sip"
        phone = Phone(ws, user, address)
        await phone.register()
        todo = {
            "call": phone.call,
            "again": lambda peer: phone.call(peer, again=True),
            "cancel": phone.cancel,
            "wait": phone.wait,
            "ring": phone.ring,
        }
        await todo[what](*peer)
        print(json.dumps({"heard": phone.heard}))


asyncio.run(main())
