//! The part of tar that bundles need: plain files under short or long names (POSIX pax, ustar, GNU). Whatever else a tar
//! can have, links, devices, sparse files, is refused.

use std::io::{self, Read};

use super::error::Fault;

/// Everything in a tar begins at a multiple of this.
pub(super) const BLOCK: usize = 512;
/// Longest extended header, and GNU long name.
const MAX_EXTENSION: u64 = 64 << 10;
/// Headers that may follow each other without a file: a few directories, each with extended headers. A tar of nothing else,
/// compressed, would keep its reader busy for as long as somebody likes.
const MOST_HEADERS: usize = 64;
/// Longest name and longest size that a plain header can hold.
const SHORT_NAME: usize = 100;
const SHORT_SIZE: u64 = 0o777_7777_7777;
/// Zeros that may follow the end: programs fill up records of that size at most.
const MOST_ZEROS: u64 = 1 << 20;

/// Where the fields of a header are.
mod field {
    use std::ops::Range;
    pub(super) const NAME: Range<usize> = 0..100;
    pub(super) const MODE: Range<usize> = 100..108;
    pub(super) const OWNER: Range<usize> = 108..116;
    pub(super) const GROUP: Range<usize> = 116..124;
    pub(super) const SIZE: Range<usize> = 124..136;
    pub(super) const TIME: Range<usize> = 136..148;
    pub(super) const CHECKSUM: Range<usize> = 148..156;
    pub(super) const KIND: usize = 156;
    pub(super) const MAGIC: Range<usize> = 257..265;
    pub(super) const PREFIX: Range<usize> = 345..500;
}

/// The headers of a file, with an extended one where the plain one is too short. The times are zero: the same images
/// make the same bundle.
pub(super) fn header(name: &str, size: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if name.len() > SHORT_NAME || size > SHORT_SIZE {
        let records = [record("path", name), record("size", &size.to_string())].concat();
        bytes.extend(plain("ocistern.pax", records.len() as u64, b'x'));
        bytes.extend(records.as_bytes());
        bytes.resize(bytes.len() + padding(records.len() as u64), 0);
    }
    let short: String = name.chars().take(SHORT_NAME).collect();
    bytes.extend(plain(&short, if size > SHORT_SIZE { 0 } else { size }, b'0'));
    bytes
}

/// How many bytes fill up the last block of a file.
pub(super) fn padding(size: u64) -> usize {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    if over == 0 { 0 } else { BLOCK - over }
}

/// A pax record, which begins with its own length.
fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n")
}

fn plain(name: &str, size: u64, kind: u8) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put = |range: std::ops::Range<usize>, text: &[u8]| {
        for (to, from) in header.iter_mut().skip(range.start).take(range.len()).zip(text) {
            *to = *from;
        }
    };
    put(field::NAME, name.as_bytes());
    put(field::MODE, b"0000644\0");
    put(field::OWNER, b"0000000\0");
    put(field::GROUP, b"0000000\0");
    put(field::SIZE, format!("{size:011o}\0").as_bytes());
    put(field::TIME, b"00000000000\0");
    put(field::CHECKSUM, b"        ");
    put(field::KIND..field::KIND + 1, &[kind]);
    put(field::MAGIC, b"ustar\x0000");
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    let text = format!("{sum:06o}\0 ");
    for (to, from) in header.iter_mut().skip(field::CHECKSUM.start).zip(text.bytes()) {
        *to = from;
    }
    header
}

/// A file in a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// As it stands there.
    pub(super) path: String,
    pub(super) size: u64,
    /// Where its header begins.
    pub(super) at: u64,
    pub(super) is_directory: bool,
}

/// A fault of a tar: of which member, and where.
pub(super) type Broken = (Option<String>, u64, Fault);

/// Reads a tar as a stream.
#[derive(Debug)]
pub(super) struct Tar<R> {
    from: R,
    /// Bytes read.
    at: u64,
    /// Bytes of the current member that are still to be read, and those behind them that fill up its block.
    left: u64,
    padding: usize,
    /// Headers since the last file.
    headers: usize,
}

/// What extended headers say of the next member.
#[derive(Default)]
struct Extended {
    path: Option<String>,
    size: Option<u64>,
}

// === impl Tar ===

impl<R: Read> Tar<R> {
    pub(super) const fn new(from: R) -> Self {
        Self { from, at: 0, left: 0, padding: 0, headers: 0 }
    }

    /// How many bytes were read.
    pub(super) const fn at(&self) -> u64 {
        self.at
    }

    /// The next member; none: this was all. What is left of the one before is passed over.
    pub(super) fn next(&mut self) -> Result<Option<Member>, Broken> {
        self.pass_over().map_err(|fault| (None, self.at, fault))?;
        let mut extended = Extended::default();
        let begin = self.at;
        loop {
            let at = self.at;
            let mut header = [0; BLOCK];
            self.fill(&mut header).map_err(|fault| (None, at, fault))?;
            if header.iter().all(|byte| *byte == 0) {
                self.end().map_err(|fault| (None, at, fault))?;
                return Ok(None);
            }
            let broken = |fault| (None, at, fault);
            if !is_right(&header) {
                return Err(broken(if at == 0 { Fault::NoBundle } else { Fault::Header }));
            }
            if self.headers == MOST_HEADERS {
                return Err(broken(Fault::Headers(MOST_HEADERS)));
            }
            self.headers += 1;
            let size = number(slice(&header, field::SIZE)).ok_or_else(|| broken(Fault::Header))?;
            let kind = header.get(field::KIND).copied().unwrap_or_default();
            match kind {
                b'x' | b'g' | b'L' => {
                    let bytes = self.extension(size).map_err(broken)?;
                    extended.learn(kind, &bytes).map_err(broken)?;
                }
                _ => {
                    let path = match extended.path {
                        Some(path) => path,
                        None => path_of(&header).ok_or_else(|| broken(Fault::Header))?,
                    };
                    let named = |fault| (Some(path.clone()), begin, fault);
                    let size = extended.size.unwrap_or(size);
                    let is_directory = match kind {
                        b'0' | 0 | b'7' => path.ends_with('/'),
                        b'5' => true,
                        b'1' => return Err(named(Fault::Kind("a hard link"))),
                        b'2' => return Err(named(Fault::Kind("a symbolic link"))),
                        b'3' | b'4' => return Err(named(Fault::Kind("a device"))),
                        b'6' => return Err(named(Fault::Kind("a pipe"))),
                        b'S' => return Err(named(Fault::Kind("a sparse file"))),
                        _ => return Err(named(Fault::Kind("of an unknown kind"))),
                    };
                    if is_directory && size > 0 {
                        return Err(named(Fault::Header));
                    }
                    if !is_directory {
                        self.headers = 0;
                    }
                    (self.left, self.padding) = (size, padding(size));
                    return Ok(Some(Member { path, size, at: begin, is_directory }));
                }
            }
        }
    }

    /// The next bytes of the current member; 0: it is at its end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..room).filter(|buffer| !buffer.is_empty()) else { return Ok(0) };
        let count = loop {
            match self.from.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(Fault::reading)?,
            }
        };
        if count == 0 {
            return Err(Fault::Truncated);
        }
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }

    fn pass_over(&mut self) -> Result<(), Fault> {
        let mut buffer = [0; 16 * BLOCK];
        while self.read(&mut buffer)? > 0 {}
        let mut rest = [0; BLOCK];
        if let Some(rest) = rest.get_mut(..self.padding) {
            self.fill(rest)?;
        }
        self.padding = 0;
        Ok(())
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, Fault> {
        if size > MAX_EXTENSION {
            return Err(Fault::TooLong { actual: size, limit: MAX_EXTENSION });
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        self.fill(&mut bytes)?;
        (self.left, self.padding) = (0, padding(size));
        self.pass_over()?;
        Ok(bytes)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Fault> {
        self.from.read_exact(buffer).map_err(Fault::reading)?;
        self.at += buffer.len() as u64;
        Ok(())
    }

    /// After one block of zeros: another, and then nothing but zeros.
    fn end(&mut self) -> Result<(), Fault> {
        let mut block = [0; BLOCK];
        self.fill(&mut block)?;
        let mut zeros = 0;
        loop {
            if block.iter().any(|byte| *byte != 0) || zeros > MOST_ZEROS {
                return Err(Fault::Trailing);
            }
            block = [0; BLOCK];
            match self.from.read(&mut block) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    self.at += count as u64;
                    zeros += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::reading(error)),
            }
        }
    }
}

// === impl Extended ===

impl Extended {
    fn learn(&mut self, kind: u8, bytes: &[u8]) -> Result<(), Fault> {
        if kind == b'L' {
            let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            self.path = Some(std::str::from_utf8(name).map_err(|_| Fault::Header)?.to_owned());
            return Ok(());
        }
        let mut rest = std::str::from_utf8(bytes).map_err(|_| Fault::Header)?.trim_end_matches('\0');
        while !rest.is_empty() {
            let (length, _) = rest.split_once(' ').ok_or(Fault::Header)?;
            let skip = length.len() + 1;
            let length: usize = length.parse().map_err(|_| Fault::Header)?;
            let record = rest.get(skip..length).and_then(|record| record.strip_suffix('\n')).ok_or(Fault::Header)?;
            let (key, value) = record.split_once('=').ok_or(Fault::Header)?;
            match key {
                // Of all members at once: nobody has reason to.
                "path" | "size" if kind == b'g' => return Err(Fault::Header),
                "path" => self.path = Some(value.to_owned()),
                "size" => self.size = Some(value.parse().map_err(|_| Fault::Header)?),
                sparse if sparse.starts_with("GNU.sparse.") => return Err(Fault::Kind("a sparse file")),
                // Times, owners, attributes.
                _ => {}
            }
            rest = rest.get(length..).ok_or(Fault::Header)?;
        }
        Ok(())
    }
}

fn slice(header: &[u8; BLOCK], range: std::ops::Range<usize>) -> &[u8] {
    header.get(range).unwrap_or_default()
}

/// Whether the checksum is right, as a sum of unsigned or, of old programs, of signed bytes.
fn is_right(header: &[u8; BLOCK]) -> bool {
    let Some(wanted) = number(slice(header, field::CHECKSUM)) else { return false };
    let bytes = header.iter().enumerate().map(|(at, byte)| if field::CHECKSUM.contains(&at) { b' ' } else { *byte });
    let unsigned: u64 = bytes.clone().map(u64::from).sum();
    let signed: i64 = bytes.map(|byte| i64::from(byte.cast_signed())).sum();
    wanted == unsigned || u64::try_from(signed).is_ok_and(|signed| signed == wanted)
}

/// A number: octal digits between blanks and zeros; or, where the first bit is set, in base 256.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // The second bit is the sign.
        let start = Some(u64::from(first & 0x7f)).filter(|_| first & 0x40 == 0)?;
        return rest.iter().try_fold(start, |sum, byte| sum.checked_mul(256)?.checked_add(u64::from(*byte)));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok().filter(|_| !text.starts_with('+')) }
}

fn path_of(header: &[u8; BLOCK]) -> Option<String> {
    let text = |range| {
        let field = slice(header, range).split(|byte| *byte == 0).next().unwrap_or_default();
        std::str::from_utf8(field).ok()
    };
    let name = text(field::NAME)?;
    // GNU's older form has other things where ustar has a prefix.
    let prefix = if slice(header, field::MAGIC).starts_with(b"ustar\0") { text(field::PREFIX)? } else { "" };
    Some(if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") })
}

pub mod fuzzing {
    //! What the fuzz targets and the tests of the reader see.

    use super::Tar;

    /// The members of a tar with their contents, up to its end or the first fault; and whether that was its end.
    pub fn members(bytes: &[u8]) -> (Vec<(String, Vec<u8>)>, bool) {
        let (mut tar, mut found) = (Tar::new(bytes), Vec::new());
        loop {
            let member = match tar.next() {
                Ok(Some(member)) => member,
                Ok(None) => return (found, true),
                Err(_) => return (found, false),
            };
            let (mut content, mut buffer) = (Vec::new(), [0; 1000]);
            loop {
                match tar.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(count) => content.extend(buffer.iter().take(count)),
                    Err(_) => return (found, false),
                }
            }
            found.push((member.path, content));
        }
    }

    /// A tar of these files.
    pub fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, content) in files {
            bytes.extend(super::header(name, content.len() as u64));
            bytes.extend(content);
            bytes.resize(bytes.len() + super::padding(content.len() as u64), 0);
        }
        bytes.resize(bytes.len() + 2 * super::BLOCK, 0);
        bytes
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test that is out of bounds fails")]
mod tests {
    use proptest::prelude::*;

    use super::fuzzing::{members, tar};
    use super::*;

    #[test]
    fn long_names_and_sizes_are_written_as_others_read_them() {
        let name = format!("blobs/sha512/{}", "a".repeat(128));
        let files = [(name, b"x".to_vec()), ("index.json".to_owned(), vec![7; 512]), ("e".to_owned(), Vec::new())];
        assert_eq!(members(&tar(&files)), (files.to_vec(), true));
        let long = header("blobs/sha256/x", 1 << 40);
        assert_eq!(long.len(), 3 * BLOCK);
        let member = Tar::new(&*long).next().unwrap().unwrap();
        assert_eq!((&*member.path, member.size, member.at), ("blobs/sha256/x", 1 << 40, 0));
        assert_eq!(record("path", &"a".repeat(90)).len(), 99);
        assert_eq!(record("path", &"a".repeat(91)).len(), 101, "its length counts itself");
    }

    #[test]
    fn what_other_programs_write_is_read() {
        let mut gnu = plain("././@LongLink", 5, b'L').to_vec();
        gnu.extend(b"a/b/c");
        gnu.resize(2 * BLOCK, 0);
        gnu.extend(tar(&[("short".to_owned(), b"x".to_vec())]));
        assert_eq!(members(&gnu), (vec![("a/b/c".to_owned(), b"x".to_vec())], true));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\0\0\0\x01\0"), Some(256));
        assert_eq!(number(b"0000644 "), Some(0o644));
        for wrong in [&b"\xff\xff"[..], b"8", b"-1", b"+1", b"1 1", b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff"] {
            assert_eq!(number(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn whatever_is_no_plain_file_is_refused() {
        for (kind, what) in
            [(b'1', "hard link"), (b'2', "symbolic link"), (b'3', "device"), (b'6', "pipe"), (b'S', "sparse")]
        {
            let (name, at, fault) = Tar::new(&plain("x", 0, kind)[..]).next().unwrap_err();
            assert_eq!((name.as_deref(), at), (Some("x"), 0));
            assert!(fault.to_string().contains(what), "{fault}");
        }
        let pax = |records: &str| {
            let mut bytes = plain("pax", records.len() as u64, b'x').to_vec();
            bytes.extend(records.as_bytes());
            bytes.resize(bytes.len() + padding(records.len() as u64), 0);
            bytes.extend(tar(&[("x".to_owned(), b"x".to_vec())]));
            bytes
        };
        assert!(members(&pax("16 path=../../a\n")).1, "names are judged by who knows them");
        for wrong in ["22 GNU.sparse.major=1\n", "99 path=a\n", "5 a=b\n", "x", "0 path=a\n", "10 size=-1\n"] {
            assert!(!members(&pax(wrong)).1, "{wrong}");
        }
        let mut bomb = plain("pax", 1 << 40, b'x').to_vec();
        bomb.resize(4 * BLOCK, b'a');
        assert!(matches!(Tar::new(&*bomb).next(), Err((None, 0, Fault::TooLong { .. }))));
    }

    #[test]
    fn headers_without_a_file_come_to_an_end() {
        let pax = [&plain("pax", 6, b'x')[..], b"6 a=b\n", &[0; BLOCK - 6]].concat();
        let file = tar(&[("x".to_owned(), b"x".to_vec())]);
        let before = |header: &[u8], count| [header.repeat(count), file[..2 * BLOCK].to_vec()].concat();
        let endless = Fault::Headers(MOST_HEADERS).to_string();
        for header in [&pax[..], &plain("blobs/", 0, b'5'), &plain("blobs/", 0, b'0')] {
            let many = [before(header, MOST_HEADERS - 1).repeat(3), vec![0; 2 * BLOCK]].concat();
            assert!(members(&many).1, "each file begins anew");
            let more = before(header, MOST_HEADERS);
            let mut tar = Tar::new(&*more);
            let (_, at, fault) = loop {
                match tar.next() {
                    Ok(member) => assert!(member.unwrap().is_directory, "no file is reached"),
                    Err(error) => break error,
                }
            };
            assert_eq!((at, fault.to_string()), ((MOST_HEADERS * header.len()) as u64, endless.clone()));
        }
    }

    #[test]
    fn the_end_is_looked_at() {
        let files = [("x".to_owned(), b"x".to_vec())];
        let whole = tar(&files);
        for cut in 1..whole.len() {
            assert!(!members(&whole[..cut]).1, "cut at {cut}");
        }
        assert!(members(&[&whole[..], &[0; 9 * 1024]].concat()).1);
        for more in [&b"x"[..], &[0, 0, 1], &vec![0; 3 << 20]] {
            assert!(!members(&[&whole[..], more].concat()).1, "something comes behind it");
        }
        for (at, fault) in [(0, Fault::NoBundle), (1024, Fault::Header)] {
            let mut broken = [tar(&files)[..1024].to_vec(), whole.clone()].concat();
            broken[at + 3] ^= 1;
            let mut tar = Tar::new(&*broken);
            let error = loop {
                if let Err(error) = tar.next() {
                    break error;
                }
            };
            assert_eq!((error.1, error.2.to_string()), (at as u64, fault.to_string()));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn what_is_written_is_read(files in prop::collection::vec(("[a-z/]{1,150}[a-z]", prop::collection::vec(any::<u8>(), 0..1200)), 0..5)) {
            prop_assert_eq!(members(&tar(&files)), (files, true));
        }

        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000), at in 0..1500_usize, bit in 0..8_u8) {
            members(&bytes);
            let mut whole = tar(&[("a".repeat(120), bytes)]);
            let place = at % whole.len();
            whole[place] ^= 1 << bit;
            members(&whole);
        }
    }
}
