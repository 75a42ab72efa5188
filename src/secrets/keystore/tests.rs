use std::{
    io::{Read as _, Seek as _},
    os::unix::fs::PermissionsExt as _,
};

use tempfile::TempDir;

use super::*;
use crate::secrets::contract;

struct Scene {
    folder: TempDir,
    store: Keystore,
}

impl Scene {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let store = Keystore::open(folder.path().join("keystore")).unwrap();
        Self { folder, store }
    }

    /// Another process's view.
    fn reopen(&self) -> Result<Keystore, Error> {
        Keystore::open(self.folder.path().join("keystore"))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn put(&self, at: &str, value: &str) {
        self.store.put(&path(at), SecretString::from(value)).await.unwrap();
    }

    async fn get(&self, at: &str) -> Result<Option<String>, Error> {
        read(&self.store, at).await
    }

    /// Every file under the folder, with its content.
    fn contents(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        let mut directories = vec![self.folder.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                } else {
                    found.push((path.clone(), fs::read(path).unwrap()));
                }
            }
        }
        found
    }
}

fn path(text: &str) -> SecretPath {
    SecretPath::new(text).unwrap()
}

async fn read(store: &Keystore, at: &str) -> Result<Option<String>, Error> {
    Ok(store.get(&path(at)).await?.map(|value| value.expose_secret().to_owned()))
}

fn mode(file: &Path) -> u32 {
    fs::metadata(file).unwrap().permissions().mode() & 0o777
}

fn chmod(file: &Path, mode: u32) {
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[tokio::test]
async fn keeps_the_contract() {
    let scene = Scene::new();
    contract::all(&scene.store).await;
}

#[tokio::test]
async fn files_are_private_and_hold_neither_values_nor_their_lengths() {
    let scene = Scene::new();
    scene.put("resource/1/password", "hush-4711").await;
    scene.put("resource/2/password", &"hush-4711".repeat(20)).await;
    for (file, content) in scene.contents() {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
        assert!(!contains(&content, b"hush-4711"), "{}", file.display());
    }
    for directory in ["keystore", "keystore/resource", "keystore/resource/1"] {
        assert_eq!(mode(&scene.file(directory)), 0o700, "{directory}");
    }
    let length = |name| fs::metadata(scene.file(name)).unwrap().len();
    assert_eq!(length("keystore/resource/1/password@1"), length("keystore/resource/2/password@1"));
    assert!(!format!("{:?}", scene.store).contains("hush"));
}

#[tokio::test]
async fn every_flipped_byte_is_noticed_and_the_error_names_the_secret_alone() {
    let scene = Scene::new();
    scene.put("resource/1/password", "hush-4711").await;
    for name in ["keystore/resource/1/password@1", "keystore/resource/1/@data-key"] {
        let file = scene.file(name);
        let original = fs::read(&file).unwrap();
        for at in (0..original.len()).step_by(7).chain([original.len() - 1]) {
            let mut changed = original.clone();
            changed[at] ^= 1;
            fs::write(&file, &changed).unwrap();
            let error = scene.get("resource/1/password").await.unwrap_err();
            assert!(
                matches!(error, Error::Damaged { .. } | Error::UnknownKey { .. }),
                "byte {at} of {name}: {error:?}"
            );
            assert!(error.to_string().contains("resource/1") && !error.to_string().contains("hush"), "{error}");
        }
        fs::write(&file, &original[..original.len() / 2]).unwrap();
        assert!(scene.get("resource/1/password").await.is_err(), "{name} was cut short");
        fs::write(&file, original).unwrap();
        assert_eq!(scene.get("resource/1/password").await.unwrap().as_deref(), Some("hush-4711"));
    }
}

#[tokio::test]
async fn a_file_does_not_open_under_another_path_version_or_tenant() {
    let scene = Scene::new();
    scene.put("resource/1/password", "first").await;
    scene.put("resource/1/password", "second").await;
    scene.put("resource/1/token", "token").await;
    scene.put("resource/2/password", "other").await;
    let attempts = [
        ("resource/1/password@1", "resource/1/password@2", "resource/1/password"),
        ("resource/1/password@2", "resource/1/token@1", "resource/1/token"),
        ("resource/1/password@1", "resource/2/password@1", "resource/2/password"),
        ("resource/1/@data-key", "resource/2/@data-key", "resource/2/password"),
    ];
    for (from, to, asked) in attempts {
        let to = scene.file("keystore").join(to);
        let original = fs::read(&to).unwrap();
        fs::copy(scene.file("keystore").join(from), &to).unwrap();
        let error = scene.get(asked).await.unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{from}: {error:?}");
        fs::write(&to, original).unwrap();
        scene.get(asked).await.unwrap();
    }
}

#[tokio::test]
async fn a_key_or_directory_that_others_can_use_is_refused() {
    let scene = Scene::new();
    scene.put("resource/1/password", "hush-4711").await;
    for (name, right, wrong) in
        [("keystore.key", 0o600, 0o640), ("keystore.key", 0o600, 0o604), ("keystore", 0o700, 0o750)]
    {
        let file = scene.file(name);
        chmod(&file, wrong);
        let error = scene.reopen().unwrap_err();
        assert!(matches!(error, Error::Exposed { .. }) && error.to_string().contains(name), "{error}");
        if name == "keystore.key" {
            assert!(matches!(scene.get("resource/1/password").await, Err(Error::Exposed { .. })));
            let write = scene.store.put(&path("resource/2/password"), SecretString::from("x")).await;
            assert!(matches!(write, Err(Error::Exposed { .. })));
        }
        chmod(&file, right);
        scene.reopen().unwrap();
    }
}

#[tokio::test]
async fn a_missing_or_wrong_key_is_refused_and_never_replaced_while_there_are_secrets() {
    let scene = Scene::new();
    scene.put("resource/1/password", "hush-4711").await;
    let (key, aside) = (scene.file("keystore.key"), scene.file("aside"));
    fs::rename(&key, &aside).unwrap();
    assert!(matches!(scene.reopen(), Err(Error::KeyMissing { .. })));
    assert!(matches!(scene.get("resource/1/password").await, Err(Error::KeyMissing { .. })));
    let write = scene.store.put(&path("resource/2/password"), SecretString::from("x")).await;
    assert!(matches!(write, Err(Error::KeyMissing { .. })));
    assert!(matches!(scene.store.rotate_key().await, Err(Error::KeyMissing { .. })));
    assert!(!key.exists(), "a new key was made");

    let other = Scene::new();
    other.put("resource/1/password", "theirs").await;
    fs::copy(other.file("keystore.key"), &key).unwrap();
    assert!(matches!(scene.get("resource/1/password").await, Err(Error::UnknownKey { .. })));
    fs::write(&key, "seedplane-key-v1 nonsense\n").unwrap();
    assert!(matches!(scene.get("resource/1/password").await, Err(Error::KeyDamaged { .. })));

    fs::rename(&aside, &key).unwrap();
    assert_eq!(scene.get("resource/1/password").await.unwrap().as_deref(), Some("hush-4711"));
}

#[tokio::test]
async fn a_rotation_makes_the_old_key_worthless() {
    let scene = Scene::new();
    for id in 1..=3 {
        scene.put(&format!("resource/{id}/password"), &format!("value {id}")).await;
    }
    let old_key = fs::read(scene.file("keystore.key")).unwrap();
    assert_eq!(scene.store.rotate_key().await.unwrap(), Rotation { rewrapped: 3, resumed: false });
    let new_key = fs::read(scene.file("keystore.key")).unwrap();
    assert_eq!(KeyRing::decode(&new_key).unwrap().0.len(), 1);
    for id in 1..=3 {
        assert_eq!(scene.get(&format!("resource/{id}/password")).await.unwrap(), Some(format!("value {id}")));
    }
    fs::write(scene.file("keystore.key"), old_key).unwrap();
    assert!(matches!(scene.get("resource/1/password").await, Err(Error::UnknownKey { .. })));
}

#[tokio::test]
async fn a_rotation_that_is_cut_short_anywhere_leaves_everything_readable_and_is_finished_by_the_next() {
    // Three data keys: six places to be cut short at.
    for cut_at in 0..5 {
        let scene = Scene::new();
        for id in 1..=3 {
            scene.put(&format!("resource/{id}/password"), &format!("value {id}")).await;
        }
        let mut steps = 0;
        let outcome = scene.store.files.rotate_key(&mut |_| {
            steps += 1;
            if steps > cut_at { Err(Error::Unavailable("cut short".to_owned())) } else { Ok(()) }
        });
        assert!(matches!(outcome, Err(Error::Unavailable(_))), "it was not cut short at {cut_at}");

        let other = scene.reopen().unwrap();
        for id in 1..=3 {
            assert_eq!(read(&other, &format!("resource/{id}/password")).await.unwrap(), Some(format!("value {id}")));
        }
        scene.put("resource/4/password", "value 4").await;
        scene.put("resource/1/password", "value 1").await;

        let finished = other.rotate_key().await.unwrap();
        assert!(finished.resumed, "cut at {cut_at}");
        assert_eq!(finished.rewrapped, 3_usize.saturating_sub(cut_at), "cut at {cut_at}");
        let key = fs::read(scene.file("keystore.key")).unwrap();
        assert_eq!(KeyRing::decode(&key).unwrap().0.len(), 1, "the old key was kept");
        for id in 1..=4 {
            assert_eq!(scene.get(&format!("resource/{id}/password")).await.unwrap(), Some(format!("value {id}")));
        }
    }
}

#[tokio::test]
async fn what_is_destroyed_is_overwritten_and_takes_its_data_key_along() {
    let scene = Scene::new();
    scene.put("resource/1/password", "hush-4711").await;
    scene.put("resource/1/token", "hush-4712").await;
    let open = |name: &str| File::open(scene.file("keystore/resource/1").join(name)).unwrap();
    let mut held = [open("password@1"), open("token@1"), open("@data-key")];
    let mut wiped = |index: usize| {
        let mut content = Vec::new();
        held[index].rewind().unwrap();
        held[index].read_to_end(&mut content).unwrap();
        assert!(!content.is_empty());
        content.iter().all(|byte| *byte == 0)
    };
    scene.store.delete(&path("resource/1/password")).await.unwrap();
    assert!(wiped(0) && !wiped(1) && !wiped(2), "the neighbour and the data key it needs are left alone");
    assert_eq!(scene.get("resource/1/token").await.unwrap().as_deref(), Some("hush-4712"));
    scene.store.delete(&path("resource/1/token")).await.unwrap();
    assert!(wiped(1) && wiped(2));
    assert!(!scene.file("keystore/resource").exists(), "empty directories are removed");
}

#[tokio::test]
async fn what_a_crash_left_half_written_or_half_destroyed_does_not_count_and_is_cleared() {
    let scene = Scene::new();
    scene.put("resource/1/password", "hush-4711").await;
    let tenant = scene.file("keystore/resource/1");
    for name in [".password@2.new", ".token@1.destroyed"] {
        fs::write(tenant.join(name), "left behind").unwrap();
    }
    assert_eq!(scene.get("resource/1/password").await.unwrap().as_deref(), Some("hush-4711"));
    assert_eq!(scene.store.list("").await.unwrap(), [path("resource/1/password")]);
    scene.put("resource/1/password", "hush-4712").await;
    let mut names: Vec<_> = fs::read_dir(&tenant).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["@data-key", "password@1", "password@2"]);
    for name in ["password@1", "password@2"] {
        fs::rename(tenant.join(name), tenant.join(format!(".{name}.destroyed"))).unwrap();
    }
    scene.store.delete(&path("resource/1/password")).await.unwrap();
    assert!(!tenant.exists(), "a deletion that was cut short is finished by the next");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn processes_that_write_at_the_same_time_each_get_a_version_of_their_own() {
    let scene = Scene::new();
    let at = path("resource/1/password");
    let writers = (0..6).map(|writer| {
        // As separate processes would: each with a store and locks of its own.
        let (store, at) = (scene.reopen().unwrap(), at.clone());
        tokio::spawn(async move {
            let value = format!("value of {writer}");
            let version = store.put(&at, SecretString::from(value.as_str())).await.unwrap();
            (version, value)
        })
    });
    let mut versions = Vec::new();
    for writer in writers.collect::<Vec<_>>() {
        let (version, value) = writer.await.unwrap();
        let stored = scene.store.get_version(&at, version).await.unwrap().unwrap();
        assert_eq!(stored.expose_secret(), value);
        versions.push(version.0);
    }
    versions.sort_unstable();
    assert_eq!(versions, [1, 2, 3, 4, 5, 6]);
}
