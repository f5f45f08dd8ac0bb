//! Lists in pages. A page ends at the key of its last item, and the next one begins behind that key, whatever has come or gone
//! meanwhile: what is there all along is neither missing nor doubled.
//!
//! The key travels through the client in a signed token. It lets nobody see more, since each page asks anew who may see what;
//! the signature keeps what stands in it ours to change, and a token of one list out of another.

use aws_lc_rs::hmac;
use axum::http::StatusCode;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;
use uuid::Uuid;

use super::problem::HttpProblem;
use crate::config::SecretReference;
use crate::digest::sha256_of_parts;
use crate::failure::Failure;

/// Items of a page, where the client does not say (requirement A-10).
const PAGE_SIZE: usize = 100;
const LARGEST_PAGE: usize = 1_000;
/// Bytes of a signature.
const SIGNATURE: usize = 32;
/// A secret of fewer characters can be guessed.
const SECRET_LENGTH: usize = 32;

/// Which page of a list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub(super) struct PageWish {
    /// Items of a page; 100, where it is left out.
    #[param(minimum = 1, maximum = 1000)]
    pub(super) page_size: Option<usize>,
    /// `next_page_token` of the page before; the first one, without.
    pub(super) page_token: Option<String>,
}

/// Some items of a list, in the order of their keys.
#[derive(Debug)]
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    /// Leads to the next page, if there are more.
    pub(super) next: Option<String>,
}

/// Where a page begins.
pub(super) struct Begin<K> {
    /// The key of the last item before it.
    pub(super) behind: Option<K>,
    /// Items that it has at most.
    pub(super) size: usize,
}

/// What tokens are signed with.
pub(super) struct PageKey(hmac::Key);

impl PageKey {
    /// Of the configuration's secret, which all replicas share; without one, of this process alone.
    ///
    /// # Errors
    /// `SECRET_UNREADABLE`, `SECRET_UNSUPPORTED`; `CONFIG_VALUE` for a secret that can be guessed.
    pub(super) fn new(secret: Option<&SecretReference>) -> Result<Self, Failure> {
        let Some(secret) = secret.map(SecretReference::read).transpose()? else {
            return Ok(Self::of(&[Uuid::new_v4(), Uuid::new_v4()].map(Uuid::into_bytes).concat()));
        };
        if secret.expose().chars().count() < SECRET_LENGTH {
            let message = format!("the secret has fewer than {SECRET_LENGTH} characters");
            return Err(Failure::usage("CONFIG_VALUE", "[api] page_key", message, "make one: openssl rand -hex 32"));
        }
        Ok(Self::of(secret.expose().as_bytes()))
    }

    fn of(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The page of `all` that is wished for. `list` says which list it is, wherever it can be told from another one; no two
    /// items have the same key.
    ///
    /// # Errors
    /// `PAGE_TOKEN_INVALID` for a token that this list has not given.
    pub(super) fn page<T, K: Ord + Serialize + DeserializeOwned>(
        &self,
        wish: &PageWish,
        list: &[&str],
        mut all: Vec<T>,
        key: impl Fn(&T) -> K,
    ) -> Result<Page<T>, HttpProblem> {
        let begin: Begin<K> = self.begin(wish, list)?;
        all.retain(|item| begin.behind.as_ref().is_none_or(|behind| key(item) > *behind));
        all.sort_by_cached_key(&key);
        Ok(self.end(list, begin.size, all, key))
    }

    /// Where the page begins that is wished for of a list that is nowhere as a whole.
    ///
    /// # Errors
    /// As of [`PageKey::page`].
    pub(super) fn begin<K: DeserializeOwned>(&self, wish: &PageWish, list: &[&str]) -> Result<Begin<K>, HttpProblem> {
        let size = wish.page_size.unwrap_or(PAGE_SIZE);
        if !(1..=LARGEST_PAGE).contains(&size) {
            return Err(HttpProblem::invalid(format!("page_size: 1 to {LARGEST_PAGE}")));
        }
        let behind = match &wish.page_token {
            Some(token) => Some(self.opened(list, token).ok_or_else(invalid)?),
            None => None,
        };
        Ok(Begin { behind, size })
    }

    /// The page of this size, of items in their order that begin where it does: one more than it has is enough.
    pub(super) fn end<T, K: Serialize>(
        &self,
        list: &[&str],
        size: usize,
        mut items: Vec<T>,
        key: impl Fn(&T) -> K,
    ) -> Page<T> {
        let more = items.len() > size;
        items.truncate(size);
        let next = items.last().filter(|_| more).map(|last| self.token(list, &key(last)));
        Page { items, next }
    }

    /// Leads to the page that begins behind this key.
    pub(super) fn token(&self, list: &[&str], key: &impl Serialize) -> String {
        let key = serde_json::to_string(key).expect("a key is plain data");
        let signature = hmac::sign(&self.0, signed(list, &key).as_bytes());
        URL_SAFE_NO_PAD.encode([signature.as_ref(), key.as_bytes()].concat())
    }

    fn opened<K: DeserializeOwned>(&self, list: &[&str], token: &str) -> Option<K> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (signature, key) = bytes.split_at_checked(SIGNATURE)?;
        let key = std::str::from_utf8(key).ok()?;
        hmac::verify(&self.0, signed(list, key).as_bytes(), signature).ok()?;
        serde_json::from_str(key).ok()
    }
}

fn signed(list: &[&str], key: &str) -> String {
    sha256_of_parts(&[list, &[key]].concat())
}

pub(super) fn invalid() -> HttpProblem {
    let detail = "page_token: this list has not given it, or by another key; begin again without one";
    HttpProblem::new(StatusCode::BAD_REQUEST, "PAGE_TOKEN_INVALID", detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(page_size: usize, page_token: Option<String>) -> PageWish {
        PageWish { page_size: Some(page_size), page_token }
    }

    fn page(key: &PageKey, all: &[i64], wish: &PageWish) -> Option<Page<i64>> {
        key.page(wish, &["numbers", "a"], all.to_vec(), |number| *number).ok()
    }

    #[test]
    fn whatever_comes_and_goes_what_stays_is_seen_once() {
        let key = PageKey::of(b"k");
        let first = page(&key, &[9, 1, 5, 3, 7], &wish(2, None)).unwrap();
        assert_eq!(first.items, [1, 3]);
        // 3, at which the page ended, and 5 have gone; 2 and 8 have come, one on either side.
        let second = page(&key, &[1, 2, 7, 8, 9], &wish(2, first.next)).unwrap();
        assert_eq!(second.items, [7, 8]);
        let last = page(&key, &[1, 2, 7, 8, 9], &wish(2, second.next)).unwrap();
        assert_eq!((last.items, last.next), (vec![9], None));
        let whole = page(&key, &[1, 2], &wish(2, None)).unwrap();
        assert_eq!((whole.items.len(), whole.next), (2, None));
        assert!(page(&key, &[], &PageWish::default()).unwrap().items.is_empty());
    }

    #[test]
    fn a_page_has_its_bounds() {
        let key = PageKey::of(b"k");
        let many: Vec<i64> = (0..2_000).collect();
        assert_eq!(page(&key, &many, &PageWish::default()).unwrap().items.len(), PAGE_SIZE);
        assert_eq!(page(&key, &many, &wish(LARGEST_PAGE, None)).unwrap().items.len(), LARGEST_PAGE);
        assert!(page(&key, &many, &wish(0, None)).is_none());
        assert!(page(&key, &many, &wish(LARGEST_PAGE + 1, None)).is_none());
    }

    #[test]
    fn a_token_is_good_for_its_list_and_key_and_as_it_was_given() {
        let key = PageKey::of(b"k");
        let token = page(&key, &[1, 2], &wish(1, None)).unwrap().next.unwrap();
        let opened = |key: &PageKey, list: &[&str], token: &str| key.opened::<i64>(list, token);
        assert_eq!(opened(&key, &["numbers", "a"], &token), Some(1));
        assert_eq!(opened(&PageKey::of(b"k"), &["numbers", "a"], &token), Some(1), "another replica");
        assert_eq!(opened(&PageKey::of(b"l"), &["numbers", "a"], &token), None);
        assert_eq!(opened(&key, &["numbersa"], &token), None);
        let mut bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
        *bytes.last_mut().unwrap() = b'2';
        for wrong in [URL_SAFE_NO_PAD.encode(bytes).as_str(), &token[1..], "", "!", "AAAA"] {
            assert_eq!(opened(&key, &["numbers", "a"], wrong), None, "{wrong}");
        }
    }
}
