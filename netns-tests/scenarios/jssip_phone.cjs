// JsSIP, the SIP stack of many web phones, without the browser: WebSocket by the package `ws`, and in
// the place of WebRTC plain RTP.
//
//     jssip_phone.cjs MODULES URL CA USER ADDRESS call PEER    registers, calls, talks, hangs up
//     jssip_phone.cjs MODULES URL CA USER ADDRESS wait         registers, answers, talks until the BYE
//
// It knows its private ADDRESS only, for media. The last line it prints is JSON: how many RTP packets
// it has heard.
'use strict';

const dgram = require('node:dgram');
const fs = require('node:fs');
const { createRequire } = require('node:module');

const [modules, url, authority, user, address, what, peer] = process.argv.slice(2);
const load = createRequire(`${modules}/`);
const PACKETS = 100;

const rtp = dgram.createSocket('udp4');
let heard = 0;
rtp.on('message', () => { heard += 1; });

function description() {
    return `v=0\r\no=- 1 1 IN IP4 ${address}\r\ns=-\r\nc=IN IP4 ${address}\r\nt=0 0\r\n`
        + `m=audio ${rtp.address().port} RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n`;
}

function talkTo(sdp) {
    const host = /^c=IN IP4 (\S+)/m.exec(sdp)[1];
    const port = Number(/^m=audio (\d+)/m.exec(sdp)[1]);
    let sequence = 0;
    const timer = setInterval(() => {
        const packet = Buffer.alloc(172, 0xff);
        packet.writeUInt16BE(0x8000, 0);
        packet.writeUInt16BE(sequence, 2);
        packet.writeUInt32BE(160 * sequence, 4);
        packet.writeUInt32BE(0x5155, 8);
        rtp.send(packet, port, host);
        sequence += 1;
        if (sequence === PACKETS) clearInterval(timer);
    }, 20);
}

// As much of WebRTC as JsSIP asks for.
class PeerConnection extends EventTarget {
    constructor() {
        super();
        this.signalingState = 'stable';
        this.iceGatheringState = 'complete';
        this.iceConnectionState = 'new';
        this.localDescription = null;
    }
    async createOffer() { return { type: 'offer', sdp: description() }; }
    async createAnswer() { return { type: 'answer', sdp: description() }; }
    async setLocalDescription(local) { this.localDescription = local; }
    async setRemoteDescription(remote) { talkTo(remote.sdp); }
    getSenders() { return []; }
    addTrack() {}
    close() { this.signalingState = 'closed'; }
}

globalThis.window = globalThis;
globalThis.RTCPeerConnection = PeerConnection;
globalThis.RTCSessionDescription = class { constructor(from) { Object.assign(this, from); } };
const WebSocket = load('ws');
globalThis.WebSocket = class extends WebSocket {
    constructor(to, protocols) { super(to, protocols, { ca: fs.readFileSync(authority) }); }
};

const JsSIP = load('jssip');
const mediaStream = { getTracks: () => [] };

function end(failure) {
    if (failure) console.log(failure);
    console.log(JSON.stringify({ heard }));
    process.exit(failure ? 1 : 0);
}

function follow(phone, session) {
    session.on('failed', (event) => end(`failed: ${event.cause}`));
    session.on('ended', () => {
        phone.on('unregistered', () => end());
        phone.unregister();
    });
    session.on('confirmed', () => {
        console.log('confirmed');
        if (what === 'call') setTimeout(() => session.terminate(), 20 * PACKETS + 500);
    });
}

rtp.bind(0, address, () => {
    const phone = new JsSIP.UA({
        sockets: [new JsSIP.WebSocketInterface(url)],
        uri: `sip:${user}@example.com`,
    });
    phone.on('registrationFailed', (event) => end(`not registered: ${event.cause}`));
    phone.on('newRTCSession', ({ originator, session }) => {
        follow(phone, session);
        if (originator === 'remote') session.answer({ mediaStream });
    });
    phone.on('registered', () => {
        console.log('registered');
        if (what === 'call') phone.call(`sip:${peer}@example.com`, { mediaStream });
    });
    phone.start();
    setTimeout(() => end('nothing happened for 30 s'), 30000);
});
