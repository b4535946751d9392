//! TOML files of clients, changed so that everything else in them stays as it is: comments, order, blanks.

use toml_edit::{Array, DocumentMut, Item, Table, TomlError};

use super::plan::Unmergeable;
use crate::cli::clients::position;

/// A file's text as a document; an empty one where there is no file.
pub(super) fn parse(text: Option<&str>) -> Result<DocumentMut, Unmergeable> {
    let text = text.unwrap_or_default();
    text.parse::<DocumentMut>().map_err(|error: TomlError| {
        let start = error.span().map_or(0, |span| span.start);
        let (line, column) = position(text, start);
        let why = error.message().lines().collect::<Vec<_>>().join(", ");
        Unmergeable::at(line, column, format!("this is no TOML ({why}); mend it, then try again"))
    })
}

/// The table of this name in another, made where there is none.
pub(super) fn table_of<'a>(parent: &'a mut Table, name: &str) -> Result<&'a mut Table, Unmergeable> {
    if !parent.contains_key(name) {
        let mut table = Table::new();
        // A header of its own only where it has something of its own.
        table.set_implicit(true);
        parent.insert(name, Item::Table(table));
    }
    let item = parent.get_mut(name).ok_or_else(|| Unmergeable::new(format!("{name:?} cannot be made")))?;
    // `name = { … }` is the same in another spelling; as a table it can grow.
    if item.is_inline_table() {
        let inline = std::mem::take(item);
        *item = inline.into_table().map_or_else(|item| item, Item::Table);
    }
    item.as_table_mut()
        .ok_or_else(|| Unmergeable::new(format!("{name:?} is no table, as it should be: mend it, then try again")))
}

/// Gives a new table the place just before the table at `first`; none: at the end.
pub(super) fn before(table: &mut Table, first: Option<isize>) {
    // Tables stand in the order of their positions, and those of the same one in the order in which they are met: behind
    // the table that stands before the first.
    if let Some(first) = first {
        table.set_position(Some(first - 1));
    }
}

/// Puts a text before all others of a list, unless it is in it, and leaves the list as it is laid out.
pub(super) fn prepend(list: &mut Array, text: &str) {
    if list.iter().any(|item| item.as_str() == Some(text)) {
        return;
    }
    // Without a comment, which is that element's.
    let lead = list.get(0).and_then(|first| Some(first.decor().prefix()?.as_str()?.split('#').next()?.to_owned()));
    list.insert(0, text);
    if let Some(lead) = lead.filter(|lead| !lead.is_empty()) {
        // Lists of several lines: on a line of its own, as the others.
        if let Some(first) = list.get_mut(0) {
            first.decor_mut().set_prefix(lead);
        }
    } else if let Some(second) = list.get_mut(1) {
        second.decor_mut().set_prefix(" ");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_keeps_its_layout() {
        for (before, after) in [
            ("a = []\n", "a = [\"x\"]\n"),
            ("a = [\"y\"]\n", "a = [\"x\", \"y\"]\n"),
            ("a = [ \"y\" ] # c\n", "a = [ \"x\", \"y\" ] # c\n"),
            ("a = [\n  # the first\n  \"y\",\n]\n", "a = [\n  \"x\",\n  # the first\n  \"y\",\n]\n"),
            ("a = [\"y\", \"x\"]\n", "a = [\"y\", \"x\"]\n"),
        ] {
            let mut document = parse(Some(before)).unwrap();
            prepend(document["a"].as_array_mut().unwrap(), "x");
            assert_eq!(document.to_string(), after);
        }
    }

    #[test]
    fn places_are_those_of_editors() {
        let wrong = parse(Some("a = 1\nb = [\n  é = 2\n")).unwrap_err();
        assert_eq!(wrong.place.map(|(line, _)| line), Some(3), "{wrong:?}");
        assert_eq!(position("ab\ncd", 4), (2, 2));
    }
}
