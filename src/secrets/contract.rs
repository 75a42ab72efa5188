//! What every [`SecretStore`] promises, as functions that panic where a promise is broken. A store's tests call [`all`]
//! on an empty store.

use secrecy::{ExposeSecret as _, SecretString};

use super::{Error, KEPT_VERSIONS, LONGEST_VALUE, SecretPath, SecretStore, SecretVersion};

/// Checks every promise. The store must hold nothing under `contract/`.
pub async fn all(store: &dyn SecretStore) {
    a_value_is_read_back_as_it_was_written(store).await;
    the_newest_version_counts_and_earlier_ones_are_kept_for_a_while(store).await;
    what_is_not_there_is_none(store).await;
    deleting_is_final_and_repeatable(store).await;
    a_list_goes_by_whole_segments(store).await;
    the_first_value_wins_where_one_is_enough(store).await;
    references_lead_back_to_their_store_alone(store).await;
}

fn path(text: &str) -> SecretPath {
    SecretPath::new(text).expect("the contract uses valid paths")
}

async fn put(store: &dyn SecretStore, at: &str, value: &str) -> SecretVersion {
    store.put(&path(at), SecretString::from(value)).await.expect("a valid secret is stored")
}

async fn get(store: &dyn SecretStore, at: &str) -> Option<String> {
    let value = store.get(&path(at)).await.expect("a secret can be asked for");
    value.map(|value| value.expose_secret().to_owned())
}

/// Any text up to the limit, and nothing beyond it.
pub async fn a_value_is_read_back_as_it_was_written(store: &dyn SecretStore) {
    let longest = "x".repeat(LONGEST_VALUE);
    for value in ["hunter2", "", "\0 two\nlines and \u{1f512}", &longest] {
        put(store, "contract/values/one", value).await;
        assert!(get(store, "contract/values/one").await.as_deref() == Some(value), "a value changed on its way");
    }
    let too_long = SecretString::from("x".repeat(LONGEST_VALUE + 1));
    let refusal = store.put(&path("contract/values/one"), too_long).await;
    assert!(matches!(refusal, Err(Error::TooLong { .. })), "{refusal:?}");
    assert!(
        get(store, "contract/values/one").await.as_deref() == Some(longest.as_str()),
        "a refused value replaced one"
    );
}

/// [`KEPT_VERSIONS`] are kept, and no more.
pub async fn the_newest_version_counts_and_earlier_ones_are_kept_for_a_while(store: &dyn SecretStore) {
    let at = path("contract/versions/one");
    for version in 1..=KEPT_VERSIONS + 2 {
        assert_eq!(put(store, at.as_str(), &format!("value {version}")).await, SecretVersion(version));
        assert_eq!(get(store, at.as_str()).await, Some(format!("value {version}")));
    }
    for version in 1..=KEPT_VERSIONS + 3 {
        let value = store.get_version(&at, SecretVersion(version)).await.expect("a version can be asked for");
        let kept = (3..=KEPT_VERSIONS + 2).contains(&version).then(|| format!("value {version}"));
        assert_eq!(value.map(|value| value.expose_secret().to_owned()), kept, "version {version}");
    }
}

/// Never an error.
pub async fn what_is_not_there_is_none(store: &dyn SecretStore) {
    put(store, "contract/missing/present", "here").await;
    for missing in
        ["contract/missing/absent", "contract/missing", "contract/missing/present/below", "contract/nobody/home"]
    {
        assert_eq!(get(store, missing).await, None, "{missing}");
        let version = store.get_version(&path(missing), SecretVersion(1)).await.expect("a version can be asked for");
        assert!(version.is_none(), "{missing}");
    }
}

/// No version is left, neighbours are, and the name can be used again.
pub async fn deleting_is_final_and_repeatable(store: &dyn SecretStore) {
    let at = path("contract/deleted/one");
    put(store, at.as_str(), "first").await;
    put(store, at.as_str(), "second").await;
    put(store, "contract/deleted/one-more", "neighbour").await;
    for _ in 0..2 {
        store.delete(&at).await.expect("deleting can be repeated");
        assert_eq!(get(store, at.as_str()).await, None);
        for version in [1, 2] {
            let value = store.get_version(&at, SecretVersion(version)).await.expect("a version can be asked for");
            assert!(value.is_none(), "version {version} outlived the secret");
        }
    }
    assert_eq!(get(store, "contract/deleted/one-more").await.as_deref(), Some("neighbour"));
    put(store, at.as_str(), "third").await;
    assert_eq!(get(store, at.as_str()).await.as_deref(), Some("third"));
    assert!(store.delete_all("").await.is_err(), "everything was deleted at once");
    store.delete_all("contract/deleted").await.expect("a prefix can be deleted");
    assert_eq!(store.list("contract/deleted").await.expect("a prefix can be listed"), []);
}

/// `a/b` is no prefix of `a/bc`.
pub async fn a_list_goes_by_whole_segments(store: &dyn SecretStore) {
    let all = ["contract/list-1", "contract/list-1/a", "contract/list-1/a/deeper", "contract/list-1/b"];
    for at in all.into_iter().chain(["contract/list-11/a"]) {
        put(store, at, "listed").await;
    }
    let list = async |prefix: &'static str| -> Vec<String> {
        let paths = store.list(prefix).await.expect("a prefix can be listed");
        paths.iter().map(SecretPath::to_string).collect()
    };
    assert_eq!(list("contract/list-1").await, all);
    assert_eq!(list("contract/list-1/a").await, all[1..3]);
    assert_eq!(list("contract/list").await, [""; 0]);
    assert!(list("").await.len() > all.len() && list("contract").await.len() > all.len());
}

/// [`SecretStore::get_or_put`], one after the other and at the same time.
pub async fn the_first_value_wins_where_one_is_enough(store: &dyn SecretStore) {
    let at = path("contract/first/one");
    let offer = |value: &str| store.get_or_put(&at, SecretString::from(value));
    let (one, two) = tokio::join!(offer("one"), offer("two"));
    let one = one.expect("a value is kept");
    assert!(one.expose_secret() == two.expect("a value is kept").expose_secret(), "two callers got different values");
    let three = offer("three").await.expect("a value is kept");
    assert!(three.expose_secret() == one.expose_secret(), "a later value replaced the first");
}

/// And never carry a value.
pub async fn references_lead_back_to_their_store_alone(store: &dyn SecretStore) {
    let at = path("contract/references/one");
    put(store, at.as_str(), "hush-4711").await;
    let reference = store.reference(&at);
    assert_eq!(reference, format!("{}:{at}", store.name()));
    assert!(!format!("{store:?} {reference}").contains("hush-4711"), "a value is in Debug or in a reference");
    let value = store.get_reference(&reference).await.expect("a reference can be followed");
    assert_eq!(value.map(|value| value.expose_secret().to_owned()).as_deref(), Some("hush-4711"));
    for foreign in [format!("elsewhere:{at}"), at.to_string(), format!("{}:../etc/passwd", store.name())] {
        let answer = store.get_reference(&foreign).await;
        assert!(matches!(answer, Err(Error::ForeignReference { .. })), "{foreign}");
    }
    store.destroy_reference(&reference).await.expect("a reference can be destroyed");
    assert_eq!(get(store, at.as_str()).await, None);
}
