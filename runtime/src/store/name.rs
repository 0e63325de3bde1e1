//! User names as file names, and back.

use super::StoreError;

/// Longest user name (bytes of UTF-8): three times as long, with its extension, it still is a file name everywhere.
pub const MAX_USER_BYTES: usize = 64;

/// Extension of records.
pub(super) const ADAPTER: &str = ".adapter";
/// Extension of optimizer states.
pub(super) const STATE: &str = ".state";
/// What a file is called while it is written.
pub(super) const TEMPORARY: &str = ".tmp";

/// Checks that `user` can be the name of a user in a store.
///
/// # Errors
/// [`StoreError::User`] when it is empty, longer than [`MAX_USER_BYTES`] or holds a control character.
pub fn check_user(user: &str) -> Result<(), StoreError> {
    let reason = if user.is_empty() {
        "it is empty"
    } else if user.len() > MAX_USER_BYTES {
        "it is longer than 64 bytes"
    } else if user.chars().any(char::is_control) {
        "it holds a control character"
    } else {
        return Ok(());
    };
    Err(StoreError::User { user: user.into(), reason })
}

/// The file name of `user` with `extension`.
pub(super) fn file_name(user: &str, extension: &str) -> Result<String, StoreError> {
    check_user(user).map(|()| encode(user) + extension)
}

/// The user whose file with `extension` this is, if it is one.
pub(super) fn user_of(file: &str, extension: &str) -> Option<String> {
    let encoded = file.strip_suffix(extension)?;
    let user = decode(encoded)?;
    // Only the spelling that `file_name` gives, so that every user listed can be loaded.
    (file_name(&user, "").ok()? == encoded).then_some(user)
}

/// Whether `file` is what a writer leaves behind when it is killed.
pub(super) fn is_temporary(file: &str) -> bool {
    file.strip_suffix(TEMPORARY).is_some_and(|file| user_of(file, ADAPTER).is_some() || user_of(file, STATE).is_some())
}

fn encode(user: &str) -> String {
    let mut name = String::with_capacity(3 * user.len());
    for byte in user.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => name.push(char::from(byte)),
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    name
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
        let longest = "€".repeat(21);
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
            &longest,
        ];
        for user in users {
            let file = file_name(user, ADAPTER).unwrap();
            assert_eq!(user_of(&file, ADAPTER).as_deref(), Some(user), "{file}");
            let plain = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-' | '%' | '.');
            assert!(file.chars().all(plain) && !file.starts_with('.') && file.len() <= 204, "{file}");
            assert!(is_temporary(&(file + TEMPORARY)));
        }
    }

    #[test]
    fn names_differ_even_where_case_is_ignored() {
        let (small, large) = (file_name("anna", ADAPTER).unwrap(), file_name("Anna", ADAPTER).unwrap());
        assert_ne!(small.to_lowercase(), large.to_lowercase());
    }

    #[test]
    fn bad_names_are_refused() {
        for user in ["", "a\nb", "a\0b", "\u{7f}", &"x".repeat(MAX_USER_BYTES + 1)] {
            assert!(matches!(file_name(user, ADAPTER), Err(StoreError::User { .. })), "{user:?}");
        }
    }

    #[test]
    fn other_files_are_nobody() {
        for file in
            ["anna", "Anna.adapter", "a.b.adapter", "%4.adapter", "%61.adapter", "%ff.adapter", ".adapter", "%C3"]
        {
            assert_eq!(user_of(file, ADAPTER), None, "{file}");
        }
        for file in ["notes.tmp", "store.lock", "anna.adapter", "Anna.adapter.tmp"] {
            assert!(!is_temporary(file), "{file}");
        }
    }
}
