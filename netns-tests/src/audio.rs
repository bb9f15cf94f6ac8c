//! What the phones say: a G.711 mu-law signal with the level changes of speech.

/// Samples a second (RFC 3551 section 4.5.14).
const RATE: u32 = 8000;
/// Samples in a packet of 20 ms.
pub(crate) const PACKET: u32 = 160;
/// Packets a second.
pub(crate) const PACKETS_PER_SECOND: u32 = RATE / PACKET;

/// A voiced sound of this pitch, in syllables of a quarter second, as mu-law bytes.
pub(crate) fn speech(seconds: u32, pitch: f64) -> Vec<u8> {
    samples(seconds, pitch).map(encode).collect()
}

/// The same as a WAV file of 16 bits a sample.
pub(crate) fn wav(seconds: u32, pitch: f64) -> Vec<u8> {
    const BYTES: u32 = 2;
    let length = seconds * RATE * BYTES;
    let mut file = Vec::with_capacity(44 + length as usize);
    file.extend_from_slice(b"RIFF");
    file.extend_from_slice(&(36 + length).to_le_bytes());
    file.extend_from_slice(b"WAVEfmt ");
    // The length of what follows, PCM, one channel.
    file.extend_from_slice(&[16, 0, 0, 0, 1, 0, 1, 0]);
    file.extend_from_slice(&RATE.to_le_bytes());
    file.extend_from_slice(&(RATE * BYTES).to_le_bytes());
    // Bytes and bits a sample.
    file.extend_from_slice(&[2, 0, 16, 0]);
    file.extend_from_slice(b"data");
    file.extend_from_slice(&length.to_le_bytes());
    file.extend(samples(seconds, pitch).flat_map(i16::to_le_bytes));
    file
}

fn samples(seconds: u32, pitch: f64) -> impl Iterator<Item = i16> {
    (0..seconds * RATE).map(move |sample| {
        let time = f64::from(sample) / f64::from(RATE);
        let turn = std::f64::consts::TAU * time;
        // Three harmonics, loud in the middle of each syllable; every fourth one is a pause.
        let voice = (turn * pitch).sin() * 0.5
            + (turn * pitch * 3.0).sin() * 0.3
            + (turn * pitch * 7.0).sin() * 0.2;
        let syllable = (time * 4.0).fract();
        let pause = (time * 4.0) as u32 % 4 == 3;
        let level = if pause {
            0.0
        } else {
            (syllable * std::f64::consts::PI).sin()
        };
        (voice * level * 12_000.0) as i16
    })
}

/// Linear to mu-law (ITU-T G.711, table 2a).
fn encode(sample: i16) -> u8 {
    const BIAS: i32 = 0x84;
    const CLIP: i32 = 32_635;
    let sign = if sample < 0 { 0x80 } else { 0 };
    let magnitude = i32::from(sample).abs().min(CLIP) + BIAS;
    let exponent = (magnitude >> 7).ilog2();
    let mantissa = (magnitude >> (exponent + 3)) & 0x0f;
    !(sign | (exponent as u8) << 4 | mantissa as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_and_the_extremes_have_their_codes_of_g711() {
        assert_eq!(encode(0), 0xff);
        assert_eq!(encode(i16::MAX), 0x80);
        assert_eq!(encode(i16::MIN), 0x00);
    }

    #[test]
    fn a_wav_file_is_as_long_as_it_says() {
        let file = wav(1, 120.0);
        let field = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
        assert_eq!(file.len(), field(4) + 8);
        assert_eq!(file.len(), field(40) + 44);
    }

    #[test]
    fn a_second_of_speech_is_fifty_packets() {
        assert_eq!(
            speech(1, 120.0).len(),
            (PACKET * PACKETS_PER_SECOND) as usize
        );
    }
}
