# shellcheck shell=bash
# What deploy/test, deploy/demo and deploy/bench share: a pinned environment, and the parts that a bare Debian lacks.
# Not here: what those programs do with them.
#
# To be sourced by bash under `set -euo pipefail`. Every `need_*` says what it installs, installs only what is
# missing, and costs milliseconds when nothing is.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${LAKEHOUSE_CACHE:-$repo/.cache}

# The versions that were tried together; rust_minimum is rust-version of Cargo.toml.
rust_minimum=1.94
cargo_deny_version=0.20.2

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 2; }

# The same results on every machine: no locale, time zone, user site or database setting of the caller counts.
pin_environment() {
    export LC_ALL=C.UTF-8 LANG=C.UTF-8 TZ=UTC
    export PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 PIP_DISABLE_PIP_VERSION_CHECK=1
    unset PYTHONPATH PYTHONHOME PGHOST PGPORT PGUSER PGPASSWORD PGDATABASE PGSERVICE PGOPTIONS PGDATA CDPATH
    umask 022
}

# A folder for everything temporary, removed at exit. Database servers run under another account, hence the mode.
make_scratch() {
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/lakehouse.XXXXXX")
    chmod 711 "$scratch"
    export TMPDIR=$scratch
    trap remove_scratch EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

remove_scratch() {
    local attempt
    # A server that a killed test left behind is stopped by its own keeper, which may still be at work here.
    for attempt in 1 2 3 4 5; do
        rm -rf "$scratch" 2>/dev/null && return
        sleep "$attempt"
    done
    say "could not remove $scratch"
}

# with_rights COMMAND…: as root, through sudo when that asks for no password, else an explanation.
with_rights() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        die "needs root once, please run: $*"
    fi
}

# need_packages WHY PACKAGE…
need_packages() {
    local why=$1
    shift
    command -v apt-get >/dev/null || die "$why is missing and this is not Debian; install what corresponds to: $*"
    say "$why is missing: installing $*"
    if ! apt_install "$@"; then
        with_rights apt-get -q update
        apt_install "$@" || die "apt-get could not install: $*"
    fi
}

apt_install() {
    with_rights env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "$@"
}

need_rust() {
    { command -v cargo && command -v rustc; } >/dev/null ||
        die "Rust is missing: install $rust_minimum or later, see https://www.rust-lang.org/tools/install"
    local version
    version=$(rustc --version | cut -d ' ' -f 2)
    [ "$(printf '%s\n%s\n' "$rust_minimum" "$version" | sort -V | head -n 1)" = "$rust_minimum" ] ||
        die "Rust $version is too old: $rust_minimum or later is needed"
    command -v cc >/dev/null || need_packages 'a C compiler' build-essential
}

# PostgreSQL's programs, without the cluster that the package would otherwise start on port 5432.
need_postgres() {
    [ -x "${LAKEHOUSE_POSTGRES_BIN:-/usr/lib/postgresql/15/bin}/initdb" ] || install_postgres
    command -v openssl >/dev/null || need_packages 'openssl' openssl
}

install_postgres() {
    [ -z "${LAKEHOUSE_POSTGRES_BIN:-}" ] || die "no initdb in LAKEHOUSE_POSTGRES_BIN=$LAKEHOUSE_POSTGRES_BIN"
    local settings=/etc/postgresql-common/createcluster.conf
    if ! grep -qs '^create_main_cluster *= *false' "$settings"; then
        with_rights mkdir -p "${settings%/*}"
        echo 'create_main_cluster = false' | with_rights tee -a "$settings" >/dev/null
    fi
    need_packages 'PostgreSQL 15' postgresql-15
}

need_python() {
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        need_packages 'Python with venv' python3 python3-venv
    fi
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' || die "Python 3.10 or later is needed"
}

# need_venv NAME REQUIREMENTS: a virtual environment per content of the file; its python is then in $venv_python.
need_venv() {
    local name=$1 requirements=$2 hash venv
    hash=$(sha256sum "$requirements" | cut -c 1-12)
    venv=$cache/$name-$hash
    venv_python=$venv/bin/python
    [ -e "$venv/complete" ] && return
    need_python
    mkdir -p "$cache"
    # Two runs at once: the second waits and finds the work done.
    exec 9>"$venv.lock"
    flock 9
    if [ ! -e "$venv/complete" ]; then
        say "installing $name into $venv (once, a minute or more)"
        rm -rf "$venv"
        python3 -m venv "$venv"
        "$venv_python" -m pip install --quiet --no-compile -r "$requirements" || die "pip could not install $requirements"
        touch "$venv/complete"
    fi
    exec 9>&-
}

# The independent readers; tests and demo find them through LAKEHOUSE_READERS.
need_readers() {
    local venv_python
    need_venv readers "$repo/deploy/readers/requirements.txt"
    export LAKEHOUSE_READERS=$venv_python
}

# Servers that stand in for Amazon's; tests find their interpreters through the variables.
need_emulators() {
    local venv_python
    need_venv ministack "$repo/deploy/emulators/requirements-ministack.txt"
    export LAKEHOUSE_MINISTACK=$venv_python
    need_venv moto "$repo/deploy/emulators/requirements-moto.txt"
    export LAKEHOUSE_MOTO=$venv_python
}

# Iceberg's own REST catalog: a folder with its jars, our main class and, as `java`, the JDK. Tests find it through
# LAKEHOUSE_REST_CATALOG. Where Java or Maven cannot be had it is skipped, with the reason.
need_rest_catalog() {
    local source=$repo/deploy/emulators/rest-catalog home log=$scratch/rest-catalog.log
    home=$cache/rest-catalog-$(cat "$source"/* | sha256sum | cut -c 1-12)
    # A subshell, so that whatever is missing ends no more than this.
    if (install_rest_catalog "$source" "$home") >"$log" 2>&1; then
        export LAKEHOUSE_REST_CATALOG=$home
    else
        cat "$log" >&2
        echo "SKIP rest-catalog: $(grep -v '^ *$' "$log" | tail -n 1)"
    fi
}

install_rest_catalog() {
    local source=$1 home=$2 java_home
    [ -e "$home/complete" ] && return
    command -v mvn >/dev/null || need_packages 'Maven' maven
    find_java17 || need_packages 'a JDK 17' openjdk-17-jdk-headless
    find_java17 || die 'no JDK 17 in JAVA_HOME or /usr/lib/jvm'
    mkdir -p "$cache"
    exec 9>"$home.lock"
    flock 9
    [ -e "$home/complete" ] && return
    rm -rf "$home"
    mkdir -p "$home"
    ln -s "$java_home" "$home/java"
    JAVA_HOME=$java_home mvn --quiet --batch-mode -Dmaven.repo.local="$cache/maven" -f "$source/pom.xml" \
        org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies -DoutputDirectory="$home/jars" ||
        die "Maven could not fetch what $source/pom.xml lists"
    "$java_home/bin/javac" -cp "$home/jars/*" -d "$home/classes" "$source/LoopbackRestCatalog.java" ||
        die 'javac could not compile LoopbackRestCatalog.java'
    touch "$home/complete"
}

# A JDK 17; its folder is then in $java_home.
find_java17() {
    for java_home in "${JAVA_HOME:-}" /usr/lib/jvm/*; do
        [ -x "$java_home/bin/javac" ] && grep -qs '^JAVA_VERSION="17[.]' "$java_home/release" && return
    done
    return 1
}

# cargo-deny, built without optimisation of what nobody waits for; its program is then in $cargo_deny.
need_cargo_deny() {
    local root=$cache/cargo-deny-$cargo_deny_version
    cargo_deny=$root/bin/cargo-deny
    [ -x "$cargo_deny" ] && return
    say "installing cargo-deny $cargo_deny_version into $root (once, several minutes)"
    env -u CARGO_TARGET_DIR CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off \
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=line-tables-only \
        cargo install --quiet --locked --root "$root" --version "$cargo_deny_version" cargo-deny
}
