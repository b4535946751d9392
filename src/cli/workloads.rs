//! The images that files of Compose, Kubernetes and Helm name, as far as they stand in them: nothing is rendered but Compose's
//! variables.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::list::{self, LinePlace, ListError, Listed, NotAReference};
use super::yaml::{self, BadYaml, Looks, Node, Value};

/// Under these a pod has its containers.
const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];
/// So deep may defaults of variables have variables in them.
const DEPTH: usize = 8;

/// What a file is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Compose: `services.*.image`.
    Compose,
    /// Kubernetes: the containers and image volumes of every pod, and of every template of one, however deep.
    Kubernetes,
    /// The values of a Helm chart, by its conventions: `image: {registry, repository, tag, digest}` or `image: NAME`, anywhere.
    Helm,
}

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Workloads {
    /// The images, in the order of the file.
    pub(super) images: Vec<Listed>,
    /// What there is to say to who asked: what was left out, and why.
    pub(super) remarks: Vec<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum WorkloadError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] ListError),
    /// It is not what it is taken for.
    #[error("{}", list::lines(.0))]
    Lines(Vec<(LinePlace, Mistake)>),
}

/// What is wrong in a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Mistake {
    /// The text is no YAML.
    #[error(transparent)]
    Yaml(#[from] BadYaml),
    /// Not UTF-8.
    #[error("this is not UTF-8")]
    Text,
    /// An image that is none.
    #[error(transparent)]
    Image(#[from] NotAReference),
    /// Not even a text.
    #[error("`image` is no text here")]
    NoText,
    /// Of Compose: a variable that is not set.
    #[error(
        "the variable {0} is not set, here or in .env beside the file, and has no default: set it, to nothing if that is meant"
    )]
    Variable(String),
    /// Of Compose: a variable that its author wants.
    #[error("the variable {name} is needed: {why}")]
    Needed {
        /// Which.
        name: String,
        /// In the author's words.
        why: String,
    },
    /// Of Compose: a `$` that begins nothing.
    #[error("{0:?} has a $ that begins no variable: write $$ for a $ itself")]
    Substitution(String),
    /// Of Compose: no services.
    #[error("there are no `services` in it: is this a Compose file?")]
    NoServices,
    /// Of Helm: nothing says which version.
    #[error(
        "{0} has no tag here, and no Chart.yaml beside the file has an `appVersion`: helm template CHART | ocistern warm --kubernetes - knows it"
    )]
    NoTag(String),
}

/// One file that is read.
struct Reading {
    file: PathBuf,
    looks: Looks,
    found: Workloads,
    wrong: Vec<(LinePlace, Mistake)>,
}

/// The images of a file, or of standard input where it is `-`.
///
/// # Errors
/// It cannot be read, or has mistakes: all of them, with their lines.
pub(super) fn read(form: Form, file: &Path) -> Result<Workloads, WorkloadError> {
    let bytes = list::content(file)?;
    let beside = |name: &str| file.parent().map(|directory| directory.join(name)).filter(|_| file != Path::new("-"));
    let text = |path: Option<PathBuf>| {
        let bytes = path.and_then(|path| list::content(&path).ok()).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_default()
    };
    match form {
        Form::Compose => {
            let stored = dotenv(&text(beside(".env")));
            let variable = |name: &str| std::env::var(name).ok().or_else(|| stored.get(name).cloned());
            parse(file, &bytes, |reading, root| reading.compose(root, &variable))
        }
        Form::Kubernetes => parse(file, &bytes, Reading::kubernetes),
        Form::Helm => {
            let version = app_version(&text(beside("Chart.yaml")));
            parse(file, &bytes, |reading, root| reading.helm(root, version.as_deref()))
        }
    }
}

/// What `look` finds in each document of the file.
fn parse(
    file: &Path,
    bytes: &[u8],
    look: impl Fn(&mut Reading, &Node) -> Result<(), BadYaml>,
) -> Result<Workloads, WorkloadError> {
    let mut reading =
        Reading { file: file.to_owned(), looks: Looks::default(), found: Workloads::default(), wrong: Vec::new() };
    let read = match std::str::from_utf8(bytes) {
        Ok(text) => yaml::documents(text)
            .and_then(|documents| documents.iter().try_for_each(|root| look(&mut reading, root)))
            .map_err(|bad| (bad.line, Mistake::Yaml(bad))),
        Err(error) => {
            let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
            Err((before.split(|byte| *byte == b'\n').count(), Mistake::Text))
        }
    };
    if let Err((line, mistake)) = read {
        reading.mistake(line, mistake);
    }
    if !reading.wrong.is_empty() {
        return Err(WorkloadError::Lines(reading.wrong));
    }
    if reading.found.images.is_empty() {
        reading.found.remarks.push(format!("{}: it names no image", list::shown(file)));
    }
    Ok(reading.found)
}

// === impl Reading ===

impl Reading {
    fn place(&self, line: usize) -> LinePlace {
        LinePlace { file: self.file.clone(), line }
    }

    fn mistake(&mut self, line: usize, mistake: impl Into<Mistake>) {
        let place = self.place(line);
        self.wrong.push((place, mistake.into()));
    }

    fn remark(&mut self, line: usize, said: &str) {
        let place = self.place(line);
        self.found.remarks.push(format!("{place}: {said}"));
    }

    /// It is an image, or a mistake.
    fn image(&mut self, line: usize, name: &str) {
        match list::check(name) {
            Ok(()) => self.found.images.push(Listed { name: name.to_owned(), place: self.place(line) }),
            Err(mistake) => self.mistake(line, mistake),
        }
    }

    /// The scalar of an `image`; none: it is empty, so whatever reads the file has one of its own.
    fn image_text<'n>(&mut self, node: &'n Node) -> Option<&'n str> {
        match &node.value {
            Value::Scalar(text) => Some(text.trim()).filter(|text| !text.is_empty()),
            Value::Null => None,
            Value::List(_) | Value::Map(_) => {
                self.mistake(node.line, Mistake::NoText);
                None
            }
        }
    }

    fn compose(&mut self, root: &Node, variable: &dyn Fn(&str) -> Option<String>) -> Result<(), BadYaml> {
        let top = root.entries(&mut self.looks)?;
        if let Some((_, include)) = top.iter().find(|(key, _)| *key == "include") {
            self.remark(include.line, "what is included is not read: name these files, too");
        }
        let Some((_, services)) = top.iter().find(|(key, _)| *key == "services") else {
            self.mistake(root.line, Mistake::NoServices);
            return Ok(());
        };
        for (name, service) in services.entries(&mut self.looks)? {
            let fields = service.entries(&mut self.looks)?;
            let field = |name: &str| fields.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
            let policy = field("pull_policy").and_then(Node::text);
            if field("build").is_some() || matches!(policy, Some("build" | "never")) {
                self.remark(service.line, &format!("{name:?} is not pulled, but built or loaded: left out"));
                continue;
            }
            let Some(image) = field("image") else {
                if let Some(extends) = field("extends") {
                    self.remark(extends.line, &format!("what {name:?} extends is not read: name that file, too"));
                }
                continue;
            };
            let Some(text) = self.image_text(image) else { continue };
            match substituted(text, variable, 0) {
                Ok(text) => self.image(image.line, text.trim()),
                Err(mistake) => self.mistake(image.line, mistake),
            }
        }
        Ok(())
    }

    fn kubernetes(&mut self, node: &Node) -> Result<(), BadYaml> {
        for item in node.items() {
            self.looks.one(item)?;
            self.kubernetes(item)?;
        }
        for (key, value) in node.entries(&mut self.looks)? {
            if CONTAINERS.contains(&key) {
                for container in value.items() {
                    let fields = container.entries(&mut self.looks)?;
                    if let Some((_, image)) = fields.iter().find(|(key, _)| *key == "image")
                        && let Some(text) = self.image_text(image)
                    {
                        self.image(image.line, text);
                    }
                }
            } else if key == "volumes" {
                for volume in value.items() {
                    self.image_volume(volume)?;
                }
            } else {
                self.kubernetes(value)?;
            }
        }
        Ok(())
    }

    /// `image: {reference: NAME}` of a volume.
    fn image_volume(&mut self, volume: &Node) -> Result<(), BadYaml> {
        let fields = volume.entries(&mut self.looks)?;
        let Some((_, image)) = fields.iter().find(|(key, _)| *key == "image") else { return Ok(()) };
        let fields = image.entries(&mut self.looks)?;
        if let Some((_, reference)) = fields.iter().find(|(key, _)| *key == "reference")
            && let Some(text) = self.image_text(reference)
        {
            self.image(reference.line, text);
        }
        Ok(())
    }

    fn helm(&mut self, root: &Node, version: Option<&str>) -> Result<(), BadYaml> {
        let global = root.entries(&mut self.looks)?.into_iter().find(|(key, _)| *key == "global");
        let registry = match global {
            Some((_, global)) => global.entries(&mut self.looks)?.into_iter().find(|(key, _)| *key == "imageRegistry"),
            None => None,
        };
        let registry = registry.and_then(|(_, value)| value.text()).filter(|text| !text.is_empty());
        self.values(root, registry, version)
    }

    fn values(&mut self, node: &Node, global: Option<&str>, version: Option<&str>) -> Result<(), BadYaml> {
        for item in node.items() {
            self.looks.one(item)?;
            self.values(item, global, version)?;
        }
        for (key, value) in node.entries(&mut self.looks)? {
            let is_image = key.to_ascii_lowercase().ends_with("image");
            match &value.value {
                Value::Scalar(text) if key == "image" && !text.trim().is_empty() => self.image(value.line, text.trim()),
                Value::Map(_) => {
                    let fields = value.entries(&mut self.looks)?;
                    let field = |name: &str| {
                        let value = fields.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
                        value.and_then(Node::text).map(str::trim).filter(|text| !text.is_empty())
                    };
                    let is_image = is_image
                        || ["tag", "digest", "registry", "pullPolicy"].iter().any(|name| field(name).is_some());
                    match field("repository") {
                        Some(repository) if is_image => {
                            let registry = global.or_else(|| field("registry"));
                            let name =
                                registry.map_or_else(|| repository.to_owned(), |host| format!("{host}/{repository}"));
                            self.chart_image(value.line, &name, field("tag").or(version), field("digest"));
                        }
                        _ => self.values(value, global, version)?,
                    }
                }
                Value::List(_) => self.values(value, global, version)?,
                Value::Null | Value::Scalar(_) => {}
            }
        }
        Ok(())
    }

    /// The digest decides where there is one, as in the charts.
    fn chart_image(&mut self, line: usize, name: &str, tag: Option<&str>, digest: Option<&str>) {
        match (tag, digest) {
            (_, Some(digest)) => self.image(line, &format!("{name}@{digest}")),
            (Some(tag), None) => self.image(line, &format!("{name}:{tag}")),
            // Some have both in the repository.
            (None, None) if name.rsplit('/').next().is_some_and(|last| last.contains([':', '@'])) => {
                self.image(line, name);
            }
            (None, None) => self.mistake(line, Mistake::NoTag(name.to_owned())),
        }
    }
}

/// `text` with the values of Compose's variables: `$NAME`, `${NAME}`, `${NAME:-default}`, `${NAME-default}`, `${NAME:?why}`,
/// `${NAME?why}`, `${NAME:+instead}`, `${NAME+instead}`; with the colon an empty value is none. `$$` is a `$`.
fn substituted(text: &str, variable: &dyn Fn(&str) -> Option<String>, depth: usize) -> Result<String, Mistake> {
    let bad = || Mistake::Substitution(text.to_owned());
    if depth > DEPTH {
        return Err(bad());
    }
    let (mut made, mut rest) = (String::new(), text);
    while let Some((before, behind)) = rest.split_once('$') {
        made.push_str(before);
        if let Some(behind) = behind.strip_prefix('$') {
            made.push('$');
            rest = behind;
            continue;
        }
        let braced = behind.strip_prefix('{');
        let (name, behind) = name(braced.unwrap_or(behind)).ok_or_else(bad)?;
        if braced.is_none() {
            made.push_str(&variable(name).ok_or_else(|| Mistake::Variable(name.to_owned()))?);
            rest = behind;
            continue;
        }
        let (inner, behind) = closed(behind).ok_or_else(bad)?;
        rest = behind;
        let (or_empty, inner) = inner.strip_prefix(':').map_or((false, inner), |inner| (true, inner));
        let value = variable(name).filter(|value| !(or_empty && value.is_empty()));
        let word = inner.get(1..).unwrap_or_default();
        let value = match (inner.bytes().next(), value) {
            (None, value) if !or_empty => value.ok_or_else(|| Mistake::Variable(name.to_owned()))?,
            (Some(b'-' | b'?'), Some(value)) => value,
            (Some(b'-'), None) | (Some(b'+'), Some(_)) => substituted(word, variable, depth + 1)?,
            (Some(b'+'), None) => String::new(),
            (Some(b'?'), None) => return Err(Mistake::Needed { name: name.to_owned(), why: word.to_owned() }),
            _ => return Err(bad()),
        };
        made.push_str(&value);
    }
    Ok(made + rest)
}

/// The name of a variable that `text` begins with, and what is behind it.
fn name(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|next: char| !(next.is_ascii_alphanumeric() || next == '_')).unwrap_or(text.len());
    let (name, behind) = text.split_at_checked(end)?;
    (!name.is_empty() && !name.starts_with(|first: char| first.is_ascii_digit())).then_some((name, behind))
}

/// What is before the brace that closes, and what is behind it.
fn closed(text: &str) -> Option<(&str, &str)> {
    let mut open = 0;
    let (at, _) = text.char_indices().find(|(at, next)| {
        match next {
            '{' if text.get(..*at).is_some_and(|before| before.ends_with('$')) => open += 1,
            '}' if open == 0 => return true,
            '}' => open -= 1,
            _ => {}
        }
        false
    })?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

/// The variables of a file `.env`: `NAME=VALUE` a line, in quotation marks or not, with comments.
fn dotenv(text: &str) -> HashMap<String, String> {
    let line = |line: &str| {
        let line = line.trim();
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line.split_once('=')?;
        let value = value.trim();
        let quoted = ['"', '\''].iter().find_map(|mark| value.strip_prefix(*mark)?.split_once(*mark));
        let value = quoted.map_or_else(|| value.split(" #").next().unwrap_or_default().trim_end(), |(inner, _)| inner);
        (!line.starts_with('#')).then(|| (name.trim().to_owned(), value.to_owned()))
    };
    text.lines().filter_map(line).collect()
}

/// The version of what a chart installs, which is the tag of images that have none in the values.
fn app_version(chart: &str) -> Option<String> {
    let root = yaml::documents(chart).ok()?.into_iter().next()?;
    let fields = root.entries(&mut Looks::default()).ok()?;
    let (_, version) = fields.into_iter().find(|(key, _)| *key == "appVersion")?;
    version.text().filter(|text| !text.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(found: &Workloads) -> Vec<(&str, usize)> {
        found.images.iter().map(|listed| (listed.name.as_str(), listed.place.line)).collect()
    }

    fn compose(text: &str) -> Result<Workloads, WorkloadError> {
        let set = |name: &str| match name {
            "TAG" => Some("1.2".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        parse(Path::new("c.yaml"), text.as_bytes(), |reading, root| reading.compose(root, &set))
    }

    fn kubernetes(text: &str) -> Result<Workloads, WorkloadError> {
        parse(Path::new("k.yaml"), text.as_bytes(), Reading::kubernetes)
    }

    fn helm(text: &str, version: Option<&str>) -> Result<Workloads, WorkloadError> {
        parse(Path::new("values.yaml"), text.as_bytes(), |reading, root| reading.helm(root, version))
    }

    #[test]
    fn services_of_compose() {
        let text = "\
name: site
x-base: &base
  image: quay.io/base:1
include: [other.yaml]
services:
  db:
    image: postgres:${PG:-16}-alpine
  web: {image: 'ghcr.io/team/web:$TAG', profiles: [debug]}
  app:
    <<: *base
  own:
    build: .
    image: own:1
  loaded: {image: 'loaded:1', pull_policy: never}
  extended: {extends: {file: x.yaml, service: y}}
  cache: {image: '${EMPTY:-redis}${EMPTY}:${TAG:+7}${NONE+x}'}
";
        let found = compose(text).unwrap();
        assert_eq!(
            names(&found),
            [("postgres:16-alpine", 7), ("ghcr.io/team/web:1.2", 8), ("quay.io/base:1", 3), ("redis:7", 16)]
        );
        let remarks = found.remarks.join("\n");
        for words in
            ["c.yaml:4: what is included", "\"own\" is not pulled", "\"loaded\" is not pulled", "what \"extended\""]
        {
            assert!(remarks.contains(words), "{words}: {remarks}");
        }
        assert!(compose("services: {}").unwrap().remarks[0].contains("names no image"));
    }

    #[test]
    fn variables_of_compose() {
        let set = |name: &str| match name {
            "A" => Some("a".to_owned()),
            "E" => Some(String::new()),
            _ => None,
        };
        for (text, made) in [
            ("$A-${A}", "a-a"),
            ("$$A", "$A"),
            ("${E}|${E-x}|${E:-x}|${N-x}|${N:-}", "||x|x|"),
            ("${A+x}|${E+x}|${E:+x}|${N+x}", "x|x||"),
            ("${N:-${M:-${A}}}b", "ab"),
            ("${A:?}${E?}", "a"),
        ] {
            assert_eq!(substituted(text, &set, 0).as_deref(), Ok(made), "{text}");
        }
        for text in ["$", "${", "${A", "${A!x}", "${A:}", "$1", "${}", "${N:-${A}"] {
            assert_eq!(substituted(text, &set, 0), Err(Mistake::Substitution(text.to_owned())), "{text}");
        }
        assert_eq!(substituted("${N}", &set, 0), Err(Mistake::Variable("N".to_owned())));
        let needed = Mistake::Needed { name: "E".to_owned(), why: "say it".to_owned() };
        assert_eq!(substituted("${E:?say it}", &set, 0), Err(needed));
        let stored = dotenv("# x=1\n\nA = 1 # one\nexport B=\"two # words\" # c\nC='x'\nnothing\nD=\n");
        let of = |name: &str| stored.get(name).map(String::as_str);
        assert_eq!(
            [of("A"), of("B"), of("C"), of("D"), of("# x"), of("nothing")],
            [Some("1"), Some("two # words"), Some("x"), Some(""), None, None]
        );
    }

    #[test]
    fn pods_of_kubernetes_wherever_they_are() {
        let text = "\
apiVersion: v1
kind: List
items:
- kind: Pod
  spec:
    initContainers: [{name: i, image: busybox}]
    containers:
    - name: a
      image: ghcr.io/team/app:v1
    - {name: injected}
    - {name: given, image: ''}
    volumes:
    - {name: v, image: {reference: 'quay.io/models/m:1', pullPolicy: Always}}
    - {name: w, configMap: {name: c}}
---
kind: CronJob
spec: {jobTemplate: {spec: {template: {spec: {containers: [{image: 'job:2'}]}}}}}
---
---
kind: ConfigMap
data: {image: 'not: an image'}
";
        let found = kubernetes(text).unwrap();
        assert_eq!(
            names(&found),
            [("busybox", 6), ("ghcr.io/team/app:v1", 9), ("quay.io/models/m:1", 13), ("job:2", 17)]
        );
        assert_eq!(names(&kubernetes("{\"spec\": {\"containers\": [{\"image\": \"a\"}]}}").unwrap()), [("a", 1)]);
    }

    #[test]
    fn values_of_charts() {
        let text = "\
replicas: 1
image:
  repository: ghcr.io/team/app
  pullPolicy: IfNotPresent
  tag: \"\"
sidecar: {image: 'quay.io/side:1', other: {sidecarImage: {repository: r, tag: 2}}}
metrics:
  exporter: {registry: docker.io, repository: bitnami/exp, tag: 0.10, digest: ''}
pinned: {image: {repository: p, tag: x, digest: DIGEST}}
git: {repository: https://example/repo}
waitImage: ~
";
        let digest = format!("sha256:{}", "0".repeat(64));
        let text = text.replace("DIGEST", &digest);
        let pinned = format!("p@{digest}");
        let found = helm(&text, Some("v3")).unwrap();
        assert_eq!(
            names(&found),
            [
                ("ghcr.io/team/app:v3", 3),
                ("quay.io/side:1", 6),
                ("r:2", 6),
                ("docker.io/bitnami/exp:0.10", 8),
                (&*pinned, 9)
            ]
        );
        let error = helm(&text, None).unwrap_err().to_string();
        assert!(
            error.starts_with("values.yaml:3: ghcr.io/team/app has no tag") && error.contains("helm template"),
            "{error}"
        );
        let global =
            helm("global: {imageRegistry: mirror.example}\nimage: {registry: docker.io, repository: a, tag: 1}", None);
        assert_eq!(names(&global.unwrap()), [("mirror.example/a:1", 2)]);
        assert_eq!(app_version("name: x\nappVersion: \"1.16\"\n").as_deref(), Some("1.16"));
        assert_eq!(app_version("not: [yaml"), None);
    }

    #[test]
    fn all_mistakes_are_told_with_their_lines() {
        let error =
            compose("services:\n  a: {image: 'Bad Name'}\n  b: {image: '${NONE}'}\n  c: {image: [x]}\n").unwrap_err();
        let text = error.to_string();
        let told: Vec<&str> = text.lines().collect();
        assert!(told[0].starts_with("c.yaml:2: ") && told[1].starts_with("c.yaml:3: the variable NONE"), "{text}");
        assert!(told[2].starts_with("c.yaml:4: `image` is no text") && told.len() == 3, "{text}");
        for (text, words) in [("a: 1", "no `services`"), ("a: [1", "no YAML"), ("- x", "no `services`")] {
            let error = compose(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        let error = parse(Path::new("-"), b"a: 1\nb: \xff\n", Reading::kubernetes).unwrap_err().to_string();
        assert_eq!(error, "standard input:2: this is not UTF-8");
    }

    #[test]
    fn what_stands_beside_the_file_is_read() {
        let place = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(place.path().join(name), text).unwrap();
        write("compose.yaml", "services: {a: {image: 'a:${OCISTERN_TEST_NOT_SET}'}}");
        write(".env", "OCISTERN_TEST_NOT_SET=5\n");
        write("values.yaml", "image: {repository: b}");
        write("Chart.yaml", "appVersion: 7");
        let name = |form, file: &str| read(form, &place.path().join(file)).unwrap().images.remove(0).name;
        assert_eq!(name(Form::Compose, "compose.yaml"), "a:5");
        assert_eq!(name(Form::Helm, "values.yaml"), "b:7");
        let missing = read(Form::Kubernetes, &place.path().join("none")).unwrap_err().to_string();
        assert!(missing.contains("none: No such file"), "{missing}");
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(services|image|containers|repository|tag|[a-z${}:\\-?+ \n\\[\\],'&*<]){0,40}") {
            let check = |found: Result<Workloads, WorkloadError>| {
                found.is_err() || found.is_ok_and(|found| found.images.iter().all(|listed| list::check(&listed.name).is_ok()))
            };
            prop_assert!(check(compose(&text)) && check(kubernetes(&text)) && check(helm(&text, Some("1"))));
        }
    }
}
