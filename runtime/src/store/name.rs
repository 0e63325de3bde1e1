//! Whose adapter it is, and its file name.

use std::fmt;

use super::StoreError;

/// Longest user name (bytes of UTF-8): three times as long, with a name and an extension, it still is a file name everywhere.
pub const MAX_USER_BYTES: usize = 64;
/// Longest adapter name (bytes of UTF-8).
pub const MAX_NAME_BYTES: usize = 16;

/// Extension of records.
pub(super) const ADAPTER: &str = ".adapter";
/// Extension of the records that were there before.
pub(super) const PREVIOUS: &str = ".previous";
/// Extension of optimizer states.
pub(super) const STATE: &str = ".state";

/// Which adapter of a store: the one of a user, or one of several, by name.
///
/// ```
/// use inlay_runtime::store::AdapterId;
///
/// assert_eq!(AdapterId::from("anna").to_string(), "adapter of \"anna\"");
/// assert_eq!(AdapterId::from(("anna", "work")).to_string(), "adapter \"work\" of \"anna\"");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdapterId {
    /// The user.
    pub user: String,
    /// Which of the user's; `None` for the one without a name.
    pub name: Option<String>,
}

impl From<&str> for AdapterId {
    fn from(user: &str) -> Self {
        Self { user: user.into(), name: None }
    }
}

impl From<&String> for AdapterId {
    fn from(user: &String) -> Self {
        user.as_str().into()
    }
}

impl From<(&str, &str)> for AdapterId {
    fn from((user, name): (&str, &str)) -> Self {
        Self { user: user.into(), name: Some(name.into()) }
    }
}

impl From<&AdapterId> for AdapterId {
    fn from(id: &AdapterId) -> Self {
        id.clone()
    }
}

impl fmt::Display for AdapterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "adapter {name:?} of {:?}", self.user),
            None => write!(f, "adapter of {:?}", self.user),
        }
    }
}

impl AdapterId {
    /// Its file name with `extension`: user and name are encoded, so the dots are the only ones.
    pub(super) fn file_name(&self, extension: &str) -> Result<String, StoreError> {
        check_user(&self.user)?;
        let Some(name) = &self.name else { return Ok(encode(&self.user) + extension) };
        check_name(name)?;
        Ok(format!("{}.{}{extension}", encode(&self.user), encode(name)))
    }

    /// The adapter whose file with `extension` this is, if it is one.
    pub(super) fn of_file(file: &str, extension: &str) -> Option<Self> {
        let encoded = file.strip_suffix(extension)?;
        let id = match encoded.split_once('.') {
            Some((user, name)) => Self { user: decode(user)?, name: Some(decode(name)?) },
            None => Self { user: decode(encoded)?, name: None },
        };
        // Only the spelling that `file_name` gives, so that every adapter listed can be loaded.
        (id.file_name(extension).ok()? == file).then_some(id)
    }
}

/// Checks that `user` can be the name of a user in a store.
///
/// # Errors
/// [`StoreError::Name`] when it is empty, longer than [`MAX_USER_BYTES`] or holds a control character.
pub fn check_user(user: &str) -> Result<(), StoreError> {
    check("user", user, MAX_USER_BYTES)
}

/// Checks that `name` can be the name of one of a user's adapters.
///
/// # Errors
/// [`StoreError::Name`] when it is empty, longer than [`MAX_NAME_BYTES`] or holds a control character.
pub fn check_name(name: &str) -> Result<(), StoreError> {
    check("adapter", name, MAX_NAME_BYTES)
}

fn check(what: &'static str, name: &str, most: usize) -> Result<(), StoreError> {
    let reason = if name.is_empty() {
        "it is empty".to_owned()
    } else if name.len() > most {
        format!("it is longer than {most} bytes")
    } else if name.chars().any(char::is_control) {
        "it holds a control character".to_owned()
    } else {
        return Ok(());
    };
    Err(StoreError::Name { what, name: name.into(), reason })
}

fn encode(name: &str) -> String {
    let mut encoded = String::with_capacity(3 * name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02x}")),
        }
    }
    encoded
}

fn decode(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let [high, low] = [digits[0], digits[1]].map(|digit| char::from(digit).to_digit(16));
        bytes.push(u8::try_from(high? * 16 + low?).expect("two hexadecimal digits"));
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_stay_plain_file_names() {
        let (longest, longest_name) = ("€".repeat(21), "€".repeat(5));
        let users = [
            "anna",
            "Anna",
            "..",
            ".",
            "/etc/passwd",
            "a/../b",
            "a\\b",
            "C:x",
            "Ana López",
            "%41",
            "nul",
            " ",
            "a.b",
            &longest,
        ];
        for user in users {
            for id in [user.into(), AdapterId::from((user, "..")), (user, "work").into(), (user, &*longest_name).into()]
            {
                let file = id.file_name(ADAPTER).unwrap();
                assert_eq!(AdapterId::of_file(&file, ADAPTER).as_ref(), Some(&id), "{file}");
                let plain = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-' | '%' | '.');
                assert!(file.chars().all(plain) && !file.starts_with('.') && !file.contains(".."), "{file}");
                assert!(id.file_name(PREVIOUS).unwrap().len() <= 255);
            }
        }
    }

    #[test]
    fn names_differ_even_where_case_is_ignored() {
        let [small, large] = ["anna", "Anna"].map(|user| AdapterId::from(user).file_name(ADAPTER).unwrap());
        assert_ne!(small.to_lowercase(), large.to_lowercase());
        let [dot, named] = [AdapterId::from("a.b"), ("a", "b").into()].map(|id| id.file_name(ADAPTER).unwrap());
        assert_ne!(dot, named);
    }

    #[test]
    fn bad_names_are_refused() {
        for user in ["", "a\nb", "a\0b", "\u{7f}", &"x".repeat(MAX_USER_BYTES + 1)] {
            let refused = AdapterId::from(user).file_name(ADAPTER).unwrap_err();
            assert!(matches!(refused, StoreError::Name { what: "user", .. }), "{user:?}");
        }
        for name in ["", "a\nb", &"x".repeat(MAX_NAME_BYTES + 1)] {
            let refused = AdapterId::from(("anna", name)).file_name(ADAPTER).unwrap_err();
            assert!(matches!(refused, StoreError::Name { what: "adapter", .. }), "{name:?}");
        }
    }

    #[test]
    fn other_files_are_nobody() {
        for file in [
            "anna",
            "Anna.adapter",
            "a.b.c.adapter",
            "a..adapter",
            "%4.adapter",
            "%61.adapter",
            "%ff.adapter",
            ".adapter",
            "%C3",
            "new.tmp",
        ] {
            assert_eq!(AdapterId::of_file(file, ADAPTER), None, "{file}");
        }
    }
}
