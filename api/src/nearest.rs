//! What somebody may have meant: the known name that is nearest to a mistyped one.

/// The most similar of `known`; `None` if there is none at all.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let likeness = |known: &str| strsim::normalized_damerau_levenshtein(&name, known);
    known.into_iter().max_by(|left, right| likeness(left).total_cmp(&likeness(right)))
}
