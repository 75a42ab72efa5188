//! Finding `postgres` and `initdb`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{BINARIES_VARIABLE, Error, OLDEST_MAJOR};

/// A directory with `postgres` and `initdb` of one major version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Binaries {
    pub directory: PathBuf,
    pub major: u32,
}

/// Where Debian keeps one directory per major version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// The binaries to run `cluster` with: those asked for, or else the newest that are new enough and, if the cluster
/// exists, of its major version.
pub(super) fn find(explicit: Option<&Path>, cluster: &Path) -> Result<Binaries, Error> {
    let wanted = cluster_major(cluster)?;
    let from_environment = env::var_os(BINARIES_VARIABLE).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(directory) = explicit.map(Path::to_owned).or(from_environment) {
        let bad = |why: String| Error::BadBinaries { directory: directory.clone(), why };
        let binaries = inspect(&directory).map_err(bad)?;
        if binaries.major < OLDEST_MAJOR {
            return Err(bad(format!("that is Postgres {}, and {OLDEST_MAJOR} is needed", binaries.major)));
        }
        return choose(vec![binaries], wanted, cluster, "");
    }
    let candidates = candidates();
    let mut searched: Vec<String> = candidates.iter().map(|path| path.display().to_string()).collect();
    if !candidates.iter().any(|path| path.starts_with(DEBIAN)) {
        searched.insert(0, format!("{DEBIAN}/*/bin"));
    }
    let found = candidates.iter().filter_map(|directory| inspect(directory).ok()).collect();
    choose(found, wanted, cluster, &searched.join(", "))
}

fn choose(found: Vec<Binaries>, wanted: Option<u32>, cluster: &Path, searched: &str) -> Result<Binaries, Error> {
    let usable: Vec<_> = found.into_iter().filter(|binaries| binaries.major >= OLDEST_MAJOR).collect();
    if usable.is_empty() {
        return Err(Error::NoBinaries { searched: searched.to_owned() });
    }
    let Some(wanted) = wanted else {
        return Ok(usable.into_iter().next().expect("it was just seen not to be empty"));
    };
    let mut majors: Vec<String> = usable.iter().map(|binaries| binaries.major.to_string()).collect();
    majors.dedup();
    usable.into_iter().find(|binaries| binaries.major == wanted).ok_or_else(|| Error::MajorVersion {
        directory: cluster.to_owned(),
        cluster: wanted,
        found: majors.join(", "),
    })
}

/// The usual places, best first: what a release ships beside our binary, Debian's newest first, `PATH`.
fn candidates() -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Some(ours) = env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned)) {
        places.push(ours.join("postgresql/bin"));
        places.push(ours.join("../lib/seedplane/postgresql/bin"));
    }
    let mut debian: Vec<(u32, PathBuf)> = fs::read_dir(DEBIAN)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    debian.sort_by_key(|(major, _)| std::cmp::Reverse(*major));
    places.extend(debian.into_iter().map(|(_, directory)| directory));
    places.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()).filter(|path| path.is_absolute()));
    places
}

/// Which Postgres is in `directory`; if none, why not.
fn inspect(directory: &Path) -> Result<Binaries, String> {
    for name in ["postgres", "initdb"] {
        if !directory.join(name).is_file() {
            return Err(format!("there is no {name} in it"));
        }
    }
    let directory = directory.canonicalize().map_err(|error| error.to_string())?;
    let output = Command::new(directory.join("postgres"))
        .arg("--version")
        .current_dir("/")
        .output()
        .map_err(|error| format!("its postgres does not run ({error})"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let major = parse_major(&text).ok_or_else(|| {
        format!("its postgres does not say its version ({})", String::from_utf8_lossy(&output.stderr).trim())
    })?;
    Ok(Binaries { directory, major })
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)` or `... 19beta1` to its major version.
fn parse_major(text: &str) -> Option<u32> {
    let version = text.split_once("(PostgreSQL)")?.1.trim_start();
    let digits = version.find(|character: char| !character.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

/// The major version that made `cluster`, `None` if there is no cluster yet.
fn cluster_major(cluster: &Path) -> Result<Option<u32>, Error> {
    let file = cluster.join("PG_VERSION");
    match fs::read_to_string(&file) {
        Ok(text) => text.trim().parse().map(Some).map_err(|_| Error::NotStarted {
            reason: format!("{} does not hold a major version", file.display()),
            log: file.clone(),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", &file)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binaries(major: u32) -> Binaries {
        Binaries { directory: PathBuf::from(format!("/somewhere/{major}")), major }
    }

    #[test]
    fn versions_are_read_as_postgres_prints_them() {
        assert_eq!(parse_major("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(parse_major("postgres (PostgreSQL) 19beta1\n"), Some(19));
        assert_eq!(parse_major("postgres (EnterpriseDB) 9\n"), None);
    }

    #[test]
    fn an_existing_cluster_gets_its_own_major_version_and_a_new_one_the_first() {
        let cluster = Path::new("/data/postgres");
        let found = || vec![binaries(18), binaries(15), binaries(14)];
        assert_eq!(choose(found(), None, cluster, "").unwrap().major, 18);
        assert_eq!(choose(found(), Some(15), cluster, "").unwrap().major, 15);
        let message = choose(found(), Some(16), cluster, "").unwrap_err().to_string();
        assert!(message.contains("Postgres 16") && message.contains("18, 15"), "{message}");
    }

    #[test]
    fn without_binaries_the_error_says_what_to_do() {
        let message = choose(vec![binaries(13)], None, Path::new("/d"), "/a, /b").unwrap_err().to_string();
        for part in ["DATABASE_URL", "apt-get install postgresql", "/a, /b", BINARIES_VARIABLE] {
            assert!(message.contains(part), "{part} is missing in: {message}");
        }
    }
}
