//! Whole bundles: written and read back in every form, and damaged in every way.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use proptest::prelude::*;

use super::contents::{Contents, Image, Part, Role};
use super::error::{BundleError, Fault};
use super::layout::{Index, OCI_LAYOUT, blob_path};
use super::reader::Reader;
use super::tar::fuzzing::tar;
use super::writer::{Form, Writer};
use crate::oci::{Algorithm, Digest, media};

type Files = Vec<(String, Vec<u8>)>;

/// A configuration, two layers, and the manifest that names them first.
fn blobs() -> Vec<Vec<u8>> {
    let parts = [b"{}".to_vec(), vec![b'a'; 3000], (0..100_000_u32).flat_map(u32::to_le_bytes).collect()];
    let descriptor = |part: &Vec<u8>| serde_json::json!({"mediaType": "application/x", "size": part.len(), "digest": digest(part).to_string()});
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media::OCI_MANIFEST, "config": descriptor(&parts[0]),
        "layers": [descriptor(&parts[1]), descriptor(&parts[2])],
    });
    [vec![manifest.to_string().into_bytes()], parts.to_vec()].concat()
}

fn digest(bytes: &[u8]) -> Digest {
    // A long name too.
    Digest::of(if bytes.len() == 3000 { Algorithm::Sha512 } else { Algorithm::Sha256 }, bytes)
}

fn contents(has: impl Fn(&Digest) -> bool) -> Contents {
    let part = |(at, bytes): (usize, &Vec<u8>)| Part {
        digest: digest(bytes),
        size: bytes.len() as u64,
        role: if at == 0 { Role::Manifest } else { Role::Blob },
        media_type: (at == 0).then(|| media::OCI_MANIFEST.to_owned()),
        subject: None,
        artifact_type: None,
        since: None,
    };
    let parts: Vec<Part> = blobs().iter().enumerate().map(part).collect();
    let image = Image {
        upstream: "docker.io".parse().unwrap(),
        url: None,
        repository: "library/alpine".parse().unwrap(),
        tag: Some("3.20".parse().unwrap()),
        digest: parts[0].digest,
        media_type: media::OCI_MANIFEST.to_owned(),
        etag: None,
        since: None,
        as_of: Timestamp::UNIX_EPOCH,
        private: false,
        parts,
        absent: Vec::new(),
    };
    Contents::of(vec![image], "test".to_owned(), Timestamp::UNIX_EPOCH, has)
}

/// The files of a bundle, in its order.
fn files() -> Files {
    let contents = contents(|_| false);
    let index = Index::of(&contents.images).to_json().unwrap();
    let mut files = vec![
        ("oci-layout".to_owned(), OCI_LAYOUT.to_vec()),
        ("ocistern.json".to_owned(), contents.to_json().unwrap()),
        ("index.json".to_owned(), index),
    ];
    let blobs = blobs();
    for blob in &contents.blobs {
        let bytes = blobs.iter().find(|bytes| digest(bytes) == blob.digest).unwrap();
        files.push((blob_path(&blob.digest), bytes.clone()));
    }
    files
}

fn write(to: &Path, form: Form) -> Result<Vec<PathBuf>, BundleError> {
    let mut writer = Writer::begin(to, form, contents(|_| false))?;
    let blobs = blobs();
    for blob in writer.contents().blobs.clone() {
        if writer.has(&blob)? {
            continue;
        }
        writer.start(blob)?;
        let bytes = blobs.iter().find(|bytes| digest(bytes) == blob.digest).unwrap();
        for piece in bytes.chunks(1000) {
            writer.write(piece)?;
        }
        writer.end()?;
    }
    Ok(writer.finish()?.files)
}

/// What comes out of one bundle.
fn read_all(mut reader: Reader) -> Result<Vec<Vec<u8>>, BundleError> {
    let mut found = Vec::new();
    while reader.next_entry()?.is_some() {
        let (mut bytes, mut buffer) = (Vec::new(), [0; 777]);
        loop {
            let count = reader.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            bytes.extend(&buffer[..count]);
        }
        found.push(bytes);
    }
    Ok(found)
}

fn read(files: &[PathBuf]) -> Result<Vec<Vec<u8>>, BundleError> {
    let [reader] = Reader::open(files)?.try_into().unwrap();
    read_all(reader)
}

fn read_tar(bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, BundleError> {
    read_all(Reader::of_tar("b.tar", Box::new(std::io::Cursor::new(bytes))))
}

fn sorted(mut blobs: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    blobs.sort();
    blobs
}

#[test]
fn every_form_is_read_back() {
    let place = tempfile::tempdir().unwrap();
    let forms = [
        Form::default(),
        Form { zstd: Some(3), volume: None },
        Form { zstd: None, volume: Some(100_000) },
        Form { zstd: Some(19), volume: Some(1000) },
    ];
    let mut plain = 0;
    for (number, form) in forms.into_iter().enumerate() {
        let written = write(&place.path().join(format!("{number}.tar")), form).unwrap();
        assert_eq!(form.volume.is_some(), written.len() > 1, "{form:?}");
        let mut shuffled = written.clone();
        shuffled.reverse();
        assert_eq!(sorted(read(&shuffled).unwrap()), sorted(blobs()), "{form:?}");
        if number == 0 {
            let bytes = fs::read(&written[0]).unwrap();
            assert_eq!(bytes, tar(&files()), "the order is the same each time");
            plain = bytes.len();
        }
    }
    let sum: usize = blobs().iter().map(Vec::len).sum();
    assert!(plain < sum + 10_000, "{plain} for {sum}");
    let directory = place.path().join("d/");
    assert_eq!(write(&directory, Form::default()).unwrap(), std::slice::from_ref(&directory));
    assert_eq!(sorted(read(std::slice::from_ref(&directory)).unwrap()), sorted(blobs()));
    assert_eq!(fs::read(directory.join("index.json")).unwrap(), files()[2].1);
    assert!(!fs::read_dir(place.path()).unwrap().any(|e| e.unwrap().path().to_string_lossy().contains("unfinished")));
}

#[test]
fn a_directory_is_gone_on_with_and_healed() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("d");
    fs::create_dir(&directory).unwrap();
    let mut writer = Writer::begin(&directory, Form::default(), contents(|_| false)).unwrap();
    let blob = writer.contents().blobs[0];
    writer.start(blob).unwrap();
    drop(writer);
    assert!(!directory.join("index.json").exists(), "it is no layout yet");
    assert!(matches!(read(std::slice::from_ref(&directory)), Err(BundleError { fault: Fault::NoBundle, .. })));
    write(&directory, Form::default()).unwrap();
    let path = directory.join(blob_path(&digest(&blobs()[2])));
    for damage in [&b"short"[..], &vec![b'b'; 3000]] {
        fs::write(&path, damage).unwrap();
        assert!(read(std::slice::from_ref(&directory)).is_err());
        write(&directory, Form::default()).unwrap();
        assert_eq!(read(std::slice::from_ref(&directory)).unwrap().len(), 4);
    }
    let whole = fs::metadata(&path).unwrap().modified().unwrap();
    write(&directory, Form::default()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), whole, "what is right is not written again");
    let other = place.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("thesis"), "").unwrap();
    let error = write(&other, Form::default()).unwrap_err();
    assert!(matches!(error.fault, Fault::Foreign), "{error}");
    assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
}

#[test]
fn nothing_wrong_goes_out() {
    let place = tempfile::tempdir().unwrap();
    for to in [place.path().join("b.tar"), place.path().join("d/")] {
        let mut writer = Writer::begin(&to, Form::default(), contents(|_| false)).unwrap();
        let blob = writer.contents().blobs[0];
        writer.start(blob).unwrap();
        writer.write(&vec![b'x'; usize::try_from(blob.size).unwrap()]).unwrap();
        let error = writer.end().unwrap_err();
        assert!(error.to_string().contains(&blob_path(&blob.digest)), "{error}");
        writer.start(blob).unwrap();
        assert!(matches!(writer.end().unwrap_err().fault, Fault::Size { .. }));
        writer.start(blob).unwrap();
        let error = writer.write(&vec![b'x'; usize::try_from(blob.size).unwrap() + 1]).unwrap_err();
        assert!(matches!(error.fault, Fault::Size { .. }), "{error}");
    }
    assert!(!place.path().join("b.tar").exists() && !place.path().join("b.tar.unfinished").exists());
}

#[test]
fn a_delta_has_what_is_missing_and_hardly_more() {
    let place = tempfile::tempdir().unwrap();
    let large = digest(&blobs()[3]);
    let contents = contents(|digest| *digest != large);
    assert_eq!((contents.blobs.len(), contents.relies_on.len()), (1, 3));
    let to = place.path().join("delta.tar");
    let mut writer = Writer::begin(&to, Form::default(), contents).unwrap();
    writer.start(writer.contents().blobs[0]).unwrap();
    writer.write(&blobs()[3]).unwrap();
    writer.end().unwrap();
    writer.finish().unwrap();
    assert_eq!(read(&[to]).unwrap(), [blobs()[3].clone()]);
}

#[test]
fn damage_and_malice_are_named() {
    type Change = fn(&mut Files);
    let changes: [(&str, Change, &str); 14] = [
        (
            "swapped",
            |f| {
                let (a, b) = (f[3].1.clone(), f[4].1.clone());
                (f[3].1, f[4].1) = (b, a);
            },
            "announces",
        ),
        ("flipped", |f| f[4].1[0] ^= 1, "is damaged"),
        ("longer", |f| f[4].1.push(0), "announces"),
        ("shorter", |f| f[4].1.truncate(5), "announces"),
        ("twice", |f| f.push(f[4].clone()), "second time"),
        ("missing", |f| drop(f.remove(4)), "is announced, and not in it"),
        ("unannounced", |f| f.push((blob_path(&digest(b"x")), b"x".to_vec())), "does not announce"),
        ("a path", |f| f.push(("../../etc/passwd".to_owned(), Vec::new())), "no bundle has a file of this name"),
        ("an absolute path", |f| f.push(("/etc/passwd".to_owned(), Vec::new())), "no bundle has a file of this name"),
        ("contents twice", |f| f.push(f[1].clone()), "second time"),
        ("index twice", |f| f.push(f[2].clone()), "second time"),
        ("edited", |f| f[1].1 = String::from_utf8(f[1].1.clone()).unwrap().replace("3.20", "3.21").into(), "checksum"),
        (
            "a later version",
            |f| f[1].1 = String::from_utf8(f[1].1.clone()).unwrap().replace("\"version\":1", "\"version\":2").into(),
            "its version is 2",
        ),
        ("no contents", |f| f[1].1.clear(), "cannot be understood"),
    ];
    for (what, change, said) in changes {
        let mut files = files();
        change(&mut files);
        let error = read_tar(tar(&files)).unwrap_err();
        assert!(error.to_string().starts_with("b.tar") && error.to_string().contains(said), "{what}: {error}");
    }
    let mut reordered = files();
    reordered.reverse();
    assert_eq!(sorted(read_tar(tar(&reordered)).unwrap()), sorted(blobs()), "any order will do");
    for strange in [(blob_path(&digest(b"x")), b"x".to_vec()), ("../x".to_owned(), Vec::new())] {
        let mut files = reordered.clone();
        files.insert(0, strange);
        assert!(read_tar(tar(&files)).is_err());
    }
    let error = read_tar([tar(&files()), b"more".to_vec()].concat()).unwrap_err();
    assert!(error.to_string().contains("behind the end"), "{error}");
    assert!(error.at.is_some());
}

#[test]
fn what_is_cut_off_is_told() {
    let whole = tar(&files());
    for cut in (0..whole.len()).step_by(509) {
        let error = read_tar(whole[..cut].to_vec()).unwrap_err();
        assert!(matches!(error.fault, Fault::Truncated), "{cut}: {error}");
    }
    let place = tempfile::tempdir().unwrap();
    let [packed] = write(&place.path().join("b"), Form { zstd: Some(1), volume: None }).unwrap().try_into().unwrap();
    let whole = fs::read(&packed).unwrap();
    for cut in (4..whole.len()).step_by(997) {
        fs::write(&packed, &whole[..cut]).unwrap();
        let error = read(std::slice::from_ref(&packed)).unwrap_err();
        assert!(matches!(error.fault, Fault::Truncated), "{cut}: {error}");
    }
    fs::write(&packed, [&whole[..], b"more"].concat()).unwrap();
    assert!(read(std::slice::from_ref(&packed)).is_err());
    for at in (0..whole.len()).step_by(991) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        fs::write(&packed, flipped).unwrap();
        assert!(read(std::slice::from_ref(&packed)).is_err(), "flipped at {at}");
    }
}

#[test]
fn what_is_packed_says_first_how_much_it_is() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("b.zst");
    let packed = |files: &Files, more: &[u8]| {
        fs::write(&path, zstd::encode_all(&*[tar(files), more.to_vec()].concat(), 1).unwrap()).unwrap();
        read(std::slice::from_ref(&path))
    };
    assert_eq!(packed(&files(), b"").unwrap().len(), 4);
    let without: Files = files().into_iter().filter(|(name, _)| name != "ocistern.json").collect();
    assert!(matches!(packed(&without, b"").unwrap_err().fault, Fault::Unbounded));
    assert!(matches!(packed(&files(), &vec![0; 64 << 20]).unwrap_err().fault, Fault::Trailing), "zeros without end");
    let mut bomb = files();
    bomb[4].1 = vec![0; 64 << 20];
    assert!(matches!(packed(&bomb, b"").unwrap_err().fault, Fault::Size { .. }));
    let mut bomb = files();
    bomb[1].1 = vec![b' '; 200 << 20];
    assert!(matches!(packed(&bomb, b"").unwrap_err().fault, Fault::TooLong { .. }));
    // A frame that asks for a window of 2 GiB.
    fs::write(&path, [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8][..], &[1, 0, 0]].concat()).unwrap();
    assert!(read(std::slice::from_ref(&path)).is_err());
}

#[test]
fn a_directory_leads_nowhere_else() {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("d");
    fs::create_dir(&directory).unwrap();
    write(&directory, Form::default()).unwrap();
    let path = directory.join(blob_path(&digest(&blobs()[1])));
    fs::rename(&path, place.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(place.path().join("elsewhere"), &path).unwrap();
    let error = read(std::slice::from_ref(&directory)).unwrap_err();
    assert!(error.to_string().contains("symbolic link"), "{error}");
    fs::remove_file(&path).unwrap();
    let error = read(std::slice::from_ref(&directory)).unwrap_err();
    assert!(error.to_string().contains("not in it"), "{error}");
    fs::create_dir(&path).unwrap();
    assert!(read(std::slice::from_ref(&directory)).is_err());
    fs::remove_dir(&path).unwrap();
    fs::rename(place.path().join("elsewhere"), &path).unwrap();
    fs::rename(directory.join("blobs/sha256"), place.path().join("moved")).unwrap();
    std::os::unix::fs::symlink(place.path().join("moved"), directory.join("blobs/sha256")).unwrap();
    let error = read(&[directory]).unwrap_err();
    assert!(error.to_string().contains("symbolic link"), "{error}");
}

#[test]
fn a_layout_of_another_program_is_understood_by_its_index() {
    let mut files = files();
    files.remove(1);
    // As containers/image writes it: in the order of the names.
    files.sort();
    let read = |files: &Files| {
        let mut reader = Reader::of_tar("b.tar", Box::new(std::io::Cursor::new(tar(files))));
        while reader.next_entry().unwrap().is_some() {}
        reader
    };
    let [image] = read(&files).images(None, Timestamp::UNIX_EPOCH).unwrap().try_into().unwrap();
    let ours = contents(|_| false);
    assert_eq!(image.name(), "docker.io/library/alpine:3.20");
    let sorted = |mut parts: Vec<Part>| {
        parts.sort_by_key(|part| part.digest.to_string());
        parts
    };
    let expected: Vec<Part> = ours.images[0].parts.clone();
    let found = sorted(image.parts);
    for (found, expected) in found.iter().zip(sorted(expected)) {
        assert_eq!((found.digest, found.size, found.role), (expected.digest, expected.size, expected.role));
    }
    assert_eq!(found.len(), 4);
    let named = |name: &str, files: &Files| read(files).images(Some(&name.parse().unwrap()), Timestamp::UNIX_EPOCH);
    assert_eq!(named("ghcr.io/team/app", &files).unwrap()[0].name(), "ghcr.io/team/app:3.20");
    assert_eq!(named("ghcr.io/team/app:v1", &files).unwrap()[0].name(), "ghcr.io/team/app:v1");
    let place = files.iter().position(|(name, _)| name == "index.json").unwrap();
    files[place].1 = serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "manifests": [
        {"mediaType": media::OCI_MANIFEST, "digest": ours.images[0].digest.to_string(), "size": blobs()[0].len()},
    ]}))
    .unwrap();
    let error = read(&files).images(None, Timestamp::UNIX_EPOCH).unwrap_err();
    assert!(error.to_string().contains("--as"), "{error}");
    let image = &named("ghcr.io/team/app", &files).unwrap()[0];
    assert_eq!(image.tag, None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn damage_never_brings_other_bytes(at: prop::sample::Index, bit in 0..8_u8, cut: prop::sample::Index, cuts: bool) {
        let mut bytes = tar(&files());
        let place = at.index(bytes.len());
        bytes[place] ^= 1 << bit;
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        let mut reader = Reader::of_tar("b.tar", Box::new(std::io::Cursor::new(bytes)));
        let right = blobs();
        let mut buffer = [0; 4096];
        // Whatever is said to be whole is right.
        while let Ok(Some(entry)) = reader.next_entry() {
            let mut found = Vec::new();
            while let Ok(count) = reader.read(&mut buffer) {
                if count == 0 {
                    prop_assert!(digest(&found) == entry.digest && right.contains(&found));
                    break;
                }
                found.extend(&buffer[..count]);
            }
        }
    }
}
