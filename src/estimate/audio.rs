//! The seconds of audio that a file declares in its container's headers; nothing is decoded.
//!
//! Reads wav, flac, ogg (opus, vorbis), mp3, mp4 and m4a, webm and mkv. Groq bills the declared duration, correct or not. For
//! other formats, and with missing or implausible headers, the duration is estimated from the size: see `TYPICAL_RATE`.

use memchr::memmem;

/// Bytes per second of speech as it is commonly compressed, 32 kbit/s. Lower bit rates are underestimated, which the answer's
/// headers correct; a lower figure here would refuse ordinary recordings of an hour as too long.
const TYPICAL_RATE: f64 = 4000.0;
/// Maximum number of parts that are skipped before the relevant ones; well-formed files have fewer.
const MAX_PARTS: usize = 1000;

/// Seconds of audio that `file` declares, rounded up.
pub fn seconds(file: &[u8]) -> u64 {
    let seconds =
        declared(file).filter(|seconds| seconds.is_finite() && *seconds > 0.0).unwrap_or(file.len() as f64 / TYPICAL_RATE);
    // Tolerates rounding errors of the division.
    (seconds - 1e-9).ceil() as u64
}

fn declared(file: &[u8]) -> Option<f64> {
    match file.get(..12)? {
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'A', b'V', b'E'] => wav(file),
        [b'f', b'L', b'a', b'C', ..] => flac(&file[4..]),
        [b'O', b'g', b'g', b'S', ..] => ogg(file),
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => mp4(file),
        [0x1a, 0x45, 0xdf, 0xa3, ..] => matroska(file),
        _ => mp3(file),
    }
}

/// Bytes of the data chunk ÷ bytes per second.
fn wav(file: &[u8]) -> Option<f64> {
    let mut rate = None;
    let mut rest = file.get(12..)?;
    for _ in 0..MAX_PARTS {
        let size = le32(rest, 4)?;
        let content = &rest[8..];
        match &rest[..4] {
            b"fmt " => rate = le32(content, 8),
            b"data" => {
                // Written to a pipe: the size was never filled in.
                let bytes = if matches!(size, 0 | 0xffff_ff00..) { content.len() as u64 } else { size };
                return Some(bytes as f64 / rate.filter(|rate| *rate > 0)? as f64);
            }
            _ => {}
        }
        rest = content.get(usize::try_from(size + size % 2).ok()?..)?;
    }
    None
}

/// Samples by sample rate, from STREAMINFO, which always comes first.
fn flac(blocks: &[u8]) -> Option<f64> {
    let info = be64(blocks, 4 + 10)?;
    let (rate, samples) = (info >> 44, info & 0xf_ffff_ffff);
    (rate > 0).then(|| samples as f64 / rate as f64)
}

/// The last page's position by the rate of the first page's codec.
fn ogg(file: &[u8]) -> Option<f64> {
    let packet = file.get(27 + usize::from(*file.get(26)?)..)?;
    let (rate, skipped) = if packet.starts_with(b"OpusHead") {
        (48_000, u64::from(u16::from_le_bytes(packet.get(10..12)?.try_into().ok()?)))
    } else if packet.starts_with(b"\x01vorbis") {
        (le32(packet, 12)?, 0)
    } else {
        return None;
    };
    let position = memmem::rfind_iter(file, b"OggS")
        .take(MAX_PARTS)
        .filter_map(|at| Some(u64::from_le_bytes(file.get(at + 6..at + 14)?.try_into().ok()?)))
        // A page on which no packet ends has no position.
        .find(|position| *position != u64::MAX)?;
    (rate > 0).then(|| position.saturating_sub(skipped) as f64 / rate as f64)
}

/// The movie's duration, or that of its fragments.
fn mp4(file: &[u8]) -> Option<f64> {
    let movie = atom(file, b"moov")?;
    let header = atom(movie, b"mvhd")?;
    let (scale, duration) = match header.first()? {
        0 => (be32(header, 12)?, u64::from(be32(header, 16)?)),
        _ => (be32(header, 20)?, be64(header, 24)?),
    };
    let known = |duration: &u64| !matches!(*duration, 0 | 0xffff_ffff | u64::MAX);
    let fragments = || {
        let header = atom(atom(movie, b"mvex")?, b"mehd")?;
        if header.first()? == &0 { be32(header, 4).map(u64::from) } else { be64(header, 4) }
    };
    let duration = Some(duration).filter(known).or_else(|| fragments().filter(known))?;
    (scale > 0).then(|| duration as f64 / f64::from(scale))
}

/// The content of the first atom of this kind.
fn atom<'f>(mut atoms: &'f [u8], kind: &[u8; 4]) -> Option<&'f [u8]> {
    for _ in 0..MAX_PARTS {
        let (head, size) = match be32(atoms, 0)? {
            0 => (8, atoms.len() as u64),
            1 => (16, be64(atoms, 8)?),
            size => (8, u64::from(size)),
        };
        let size = usize::try_from(size).ok().filter(|size| *size >= head)?;
        if atoms.get(4..8)? == kind {
            return atoms.get(head..size.min(atoms.len()));
        }
        atoms = atoms.get(size..)?;
    }
    None
}

/// `Info.Duration`; live recordings have none, so it is extrapolated from the times of their clusters.
fn matroska(file: &[u8]) -> Option<f64> {
    let mut nanos_per_tick = 1e6;
    let mut at = 0;
    for _ in 0..MAX_PARTS {
        let (id, content, size) = element(file, at)?;
        match id {
            // The segment and its information: their members follow.
            0x1853_8067 | 0x1549_a966 => at = content,
            0x002a_d7b1 => {
                nanos_per_tick = unsigned(file.get(content..content.checked_add(size?)?)?) as f64;
                at = content + size?;
            }
            0x4489 => return Some(float(file.get(content..content.checked_add(size?)?)?)? * nanos_per_tick / 1e9),
            0x1f43_b675 => break,
            _ => at = content.checked_add(size?)?,
        }
    }
    let last = memmem::rfind(file, &[0x1f, 0x43, 0xb6, 0x75]).filter(|last| *last > at)?;
    let (_, content, _) = element(file, last)?;
    let (id, content, size) = element(file, content)?;
    let ticks = (id == 0xe7).then(|| file.get(content..content.checked_add(size?)?).map(unsigned))??;
    Some(ticks as f64 * nanos_per_tick / 1e9 * file.len() as f64 / last as f64)
}

/// An element's id, where its content begins, and its size if it is known.
fn element(file: &[u8], at: usize) -> Option<(u64, usize, Option<usize>)> {
    let id_len = file.get(at)?.leading_zeros() as usize + 1;
    let id = unsigned(file.get(at..at + id_len).filter(|id| id.len() <= 4)?);
    let at = at + id_len;
    let size_len = file.get(at)?.leading_zeros() as usize + 1;
    let size = unsigned(file.get(at..at + size_len).filter(|size| size.len() <= 8)?);
    let mask = (1_u64 << (7 * size_len)) - 1;
    let size = Some(size & mask).filter(|size| *size != mask).and_then(|size| usize::try_from(size).ok());
    Some((id, at + size_len, size))
}

fn unsigned(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn float(bytes: &[u8]) -> Option<f64> {
    match bytes.len() {
        4 => Some(f64::from(f32::from_be_bytes(bytes.try_into().ok()?))),
        8 => Some(f64::from_be_bytes(bytes.try_into().ok()?)),
        _ => None,
    }
}

/// Frames × samples if the first frame has a frame count, else bytes ÷ the first frame's bit rate.
fn mp3(file: &[u8]) -> Option<f64> {
    let tag = match file.get(..10)? {
        [b'I', b'D', b'3', _, _, _, sizes @ ..] => 10 + sizes.iter().fold(0, |size, b| size << 7 | usize::from(b & 0x7f)),
        _ => 0,
    };
    let audio = file.get(tag..)?;
    let mut starts = memchr::memchr_iter(0xff, &audio[..audio.len().min(1 << 16)]);
    // A frame is accepted only if another one follows it.
    let (start, frame) = starts.find_map(|start| {
        let frame = Frame::of(&audio[start..])?;
        let next = audio.get(start + frame.bytes..).filter(|next| !next.is_empty());
        next.is_none_or(|next| Frame::of(next).is_some()).then_some((start, frame))
    })?;
    let audio = &audio[start..];
    let counted = |at: usize, mark: &[u8], count: usize| {
        audio.get(at..)?.starts_with(mark).then(|| be32(audio, at + count))?.filter(|frames| *frames > 0)
    };
    // The count of a Xing or Info mark is there if the lowest flag says so.
    let has_count = be32(audio, frame.xing + 4).is_some_and(|flags| flags & 1 == 1);
    let marked = || counted(frame.xing, b"Xing", 8).or_else(|| counted(frame.xing, b"Info", 8)).filter(|_| has_count);
    match marked().or_else(|| counted(36, b"VBRI", 14)) {
        Some(frames) => Some(f64::from(frames) * frame.samples / frame.rate),
        None => Some(audio.len() as f64 * 8.0 / frame.bit_rate),
    }
}

/// An mp3 frame's header.
struct Frame {
    rate: f64,
    bit_rate: f64,
    samples: f64,
    bytes: usize,
    /// The position of a Xing or Info header.
    xing: usize,
}

impl Frame {
    /// Layer III only.
    fn of(bytes: &[u8]) -> Option<Self> {
        const KBITS_1: [u16; 15] = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320];
        const KBITS_2: [u16; 15] = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160];
        let [0xff, second, third, fourth] = *bytes.first_chunk::<4>()? else { return None };
        let halvings = match second & 0b1111_1110 {
            0b1111_1010 => 0,
            0b1111_0010 => 1,
            0b1110_0010 => 2,
            _ => return None,
        };
        let first_version = halvings == 0;
        let kbits = *(if first_version { KBITS_1 } else { KBITS_2 }).get(usize::from(third >> 4)).filter(|kbits| **kbits > 0)?;
        let rate = [44_100, 48_000, 32_000].get(usize::from(third >> 2 & 3))? >> halvings;
        let mono = fourth >> 6 == 3;
        let bit_rate = f64::from(kbits) * 1000.0;
        let samples = if first_version { 1152.0 } else { 576.0 };
        let padding = usize::from(third >> 1 & 1);
        let bytes = (samples / 8.0 * bit_rate / f64::from(rate)) as usize + padding;
        let side = match (first_version, mono) {
            (true, false) => 32,
            (true, true) | (false, false) => 17,
            (false, true) => 9,
        };
        Some(Self { rate: f64::from(rate), bit_rate, samples, bytes, xing: 4 + side })
    }
}

fn le32(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?).into())
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    macro_rules! fixture {
        ($name:literal) => {
            ($name, include_bytes!(concat!("../../tests/corpus/audio/", $name)).as_slice())
        };
    }

    /// Files made by ffmpeg, and their durations according to ffprobe (12.3 s; mp3 rounds up to whole frames; the bare one has no
    /// count).
    const FILES: [((&str, &[u8]), f64); 10] = [
        (fixture!("one.wav"), 1.05),
        (fixture!("twelve.flac"), 12.3),
        (fixture!("twelve.opus.ogg"), 12.3),
        (fixture!("twelve.vorbis.ogg"), 12.3),
        (fixture!("twelve.cbr.mp3"), 12.456),
        (fixture!("twelve.bare.mp3"), 12.456),
        (fixture!("twelve.vbr.mp3"), 12.384),
        (fixture!("twelve.m4a"), 12.3),
        (fixture!("twelve.webm"), 12.308),
        (fixture!("twelve.mka"), 12.308),
    ];

    #[test]
    fn files_as_ffmpeg_makes_them() {
        for ((name, file), seconds) in FILES {
            let declared = declared(file).unwrap_or_else(|| panic!("{name}: not read"));
            assert!((declared - seconds).abs() < 0.12, "{name}: {declared} s, not {seconds} s");
            assert_eq!(super::seconds(file), seconds.ceil() as u64, "{name}");
        }
    }

    #[test]
    fn declared_counts_even_where_the_file_is_cut() {
        for ((name, file), seconds) in FILES {
            // Formats that have their length in the head.
            if [".wav", ".flac", ".cbr.mp3", ".vbr.mp3", ".webm", ".mka"].iter().any(|end| name.ends_with(end)) {
                assert_eq!(super::seconds(&file[..file.len() / 2]), seconds.ceil() as u64, "{name}");
            }
        }
    }

    #[test]
    fn files_without_a_duration_are_estimated_by_size() {
        let fragmented = include_bytes!("../../tests/corpus/audio/twelve.fragmented.mp4");
        assert_eq!(seconds(fragmented), (fragmented.len() as u64).div_ceil(4000));
        assert_eq!(seconds(b""), 0);
        assert_eq!(seconds(&[b'x'; 8001]), 3);
    }

    #[test]
    fn a_wav_from_a_pipe_has_no_size() {
        let mut wav = FILES[0].0.1.to_vec();
        let data = memmem::find(&wav, b"data").expect("a data chunk");
        wav[data + 4..data + 8].copy_from_slice(&[0xff; 4]);
        assert_eq!(seconds(&wav), 2);
    }

    #[test]
    fn a_live_recording_is_judged_by_its_clusters() {
        let mut webm = FILES[8].0.1.to_vec();
        let duration = memmem::find(&webm, &[0x44, 0x89, 0x88]).expect("a duration");
        // An unknown element of the same length.
        webm[duration..duration + 2].copy_from_slice(&[0x44, 0x8a]);
        let seconds = seconds(&webm);
        assert!((10..=16).contains(&seconds), "{seconds}");
    }

    proptest! {
        #[test]
        fn never_panics_on_anything(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            seconds(&bytes);
            for magic in [&b"RIFF\0\0\0\0WAVE"[..], b"fLaC", b"OggS", b"\0\0\0\x18ftyp", b"\x1a\x45\xdf\xa3", b"ID3", b"\xff\xfb"] {
                seconds(&[magic, &bytes].concat());
            }
        }

        #[test]
        fn never_panics_on_broken_files(which in 0usize..10, holes in proptest::collection::vec((0usize..600, any::<u8>()), 0..9), cut in 0usize..20_000) {
            let mut file = FILES[which].0.1.to_vec();
            file.truncate(cut);
            for (at, byte) in holes {
                if let Some(place) = file.get_mut(at) {
                    *place = byte;
                }
            }
            seconds(&file);
        }
    }
}
