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
    skipped=$scratch/skipped
    : >"$skipped"
    trap remove_scratch EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# skip NAME LOG: the last thing that was said is the reason. All of them are named once more at the end.
skip() {
    echo "SKIP $1: $(grep -v '^ *$' "$2" | tail -n 1)" | tee -a "$skipped"
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
    { command -v cc && command -v make; } >/dev/null || need_packages 'a C compiler and make' build-essential
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
    need_ministack
    need_venv moto "$repo/deploy/emulators/requirements-moto.txt"
    export LAKEHOUSE_MOTO=$venv_python
}

# S3 alone.
need_ministack() {
    local venv_python
    need_venv ministack "$repo/deploy/emulators/requirements-ministack.txt"
    export LAKEHOUSE_MINISTACK=$venv_python
}

# Iceberg's own REST catalog, found through LAKEHOUSE_REST_CATALOG: a folder with its jars and our main class.
need_rest_catalog() {
    need_java_server LAKEHOUSE_REST_CATALOG 17 rest-catalog emulators/rest-catalog/pom.xml install_rest_catalog
}

install_rest_catalog() {
    local home=$1 pom=$2
    copy_jars "$pom" "$home/jars" &&
        "$java_home/bin/javac" -cp "$home/jars/*" -d "$home/classes" "${pom%/*}/LoopbackRestCatalog.java"
}

# cargo-deny, built without optimisation of what nobody waits for; its program is then in $cargo_deny.
need_cargo_deny() {
    local root=$cache/cargo-deny-$cargo_deny_version
    cargo_deny=$root/bin/cargo-deny
    [ -x "$cargo_deny" ] && return
    say "installing cargo-deny $cargo_deny_version into $root (once, several minutes)"
    env -u CARGO_TARGET_DIR CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off \
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_DEBUG=none \
        cargo install --quiet --locked --root "$root" --version "$cargo_deny_version" cargo-deny
}

# The long tier's engines.
need_long_engines() {
    need_java_server LAKEHOUSE_SPARK 17 spark readers/spark.pom.xml install_spark
    need_java_server LAKEHOUSE_TRINO_406 17 trino-406 readers/trino.pom.xml install_trino 406
    need_java_server LAKEHOUSE_TRINO_483 25 trino-483 readers/trino.pom.xml install_trino 483
}

# What makes requests of the OpenAPI document.
need_schemathesis() {
    local venv_python
    need_venv schemathesis "$repo/deploy/requirements-schemathesis.txt"
    export LAKEHOUSE_SCHEMATHESIS_PYTHON=$venv_python
}

# What looks at the console. The test of it says so where it cannot be had.
need_browser() {
    { [ -x /usr/bin/chromium ] && [ -x /usr/bin/chromedriver ]; } && return
    say 'Chromium is missing: installing chromium chromium-driver'
    { command -v apt-get && apt_install chromium chromium-driver; } >"$scratch/chromium.log" 2>&1 ||
        say 'chromium cannot be installed'
}

# need_java_server VARIABLE JDK NAME POM INSTALL…: a folder of the cache that holds its jars and, as `java`, its JDK; tests
# find it through the variable. What cannot be had is skipped, with its reason.
need_java_server() {
    local variable=$1 jdk=$2 name=$3 pom=$repo/deploy/$4 log=$scratch/$3.log home
    shift 4
    home=$cache/$name-$(cat "$repo"/deploy/readers/{*.pom.xml,requirements-long.txt} "$repo"/deploy/emulators/rest-catalog/* |
        sha256sum | cut -c 1-12)
    [ -e "$home/complete" ] || say "installing $name into $home (once, several minutes)"
    # A subshell, so that whatever is missing ends no more than this server.
    if (install_java_server "$home" "$jdk" "$pom" "$@") >"$log" 2>&1; then
        export "$variable=$home"
    else
        unset "$variable"
        cat "$log" >&2
        skip "$name" "$log"
    fi
}

install_java_server() {
    local home=$1 jdk=$2 pom=$3 java_home
    shift 3
    find_jdk "$jdk"
    mkdir -p "$cache"
    exec 8>"$home.lock"
    flock 8
    if [ ! -e "$home/complete" ]; then
        command -v mvn >/dev/null || need_packages 'Maven' maven
        rm -rf "$home"
        mkdir -p "$home"
        "$@" "$home" "$pom" || die "could not install it into $home"
        touch "$home/complete"
    fi
    ln -sfn "$java_home" "$home/java"
}

# find_jdk VERSION: its folder is then in $java_home. Debian has 17; a newer one is used where somebody has put it.
find_jdk() {
    local version=$1
    look_for_jdk "$version" && return
    [ "$version" = 17 ] || die "no JDK $version in JAVA_HOME or /usr/lib/jvm"
    need_packages 'a JDK 17' openjdk-17-jdk-headless
    look_for_jdk "$version" || die "no JDK $version in /usr/lib/jvm"
}

look_for_jdk() {
    for java_home in "${JAVA_HOME:-}" /usr/lib/jvm/*; do
        [ -x "$java_home/bin/javac" ] && grep -qs "^JAVA_VERSION=\"$1[.\"]" "$java_home/release" && return
    done
    return 1
}

install_spark() {
    local home=$1 pom=$2 venv_python
    need_venv spark-python "$repo/deploy/readers/requirements-long.txt"
    copy_jars "$pom" "$home/jars" && ln -s "${venv_python%/bin/python}" "$home/python"
}

# Two things of the server are in no published jar: the file that names the connector's plugin, and a main class.
install_trino() {
    local version=$1 home=$2 pom=$3 work
    work=$(mktemp -d)
    mkdir -p "$work/META-INF/services"
    echo io.trino.plugin.iceberg.IcebergPlugin >"$work/META-INF/services/io.trino.spi.Plugin"
    cat >"$work/Launch.java" <<'JAVA'
public class Launch {
    public static void main(String[] arguments) {
        new io.trino.server.Server().start(arguments[0]);
    }
}
JAVA
    copy_jars "$pom" "$home/lib" -Dtrino="$version" -Dpart=trino-main &&
        copy_jars "$pom" "$home/plugin/iceberg" -Dtrino="$version" -Dpart=trino-iceberg &&
        "$java_home/bin/jar" --create --file "$home/plugin/iceberg/services.jar" -C "$work" META-INF &&
        "$java_home/bin/javac" -cp "$home/lib/*" -d "$home/lib/launch" "$work/Launch.java"
}

# copy_jars POM FOLDER PROPERTY…: all that the project needs at run time. Groups in the names, as some jars share one.
copy_jars() {
    local pom=$1 folder=$2
    shift 2
    JAVA_HOME=$java_home mvn --quiet --batch-mode -Dmaven.repo.local="$cache/maven" -f "$pom" "$@" \
        org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies \
        -DincludeScope=runtime -DoutputDirectory="$folder" -Dmdep.prependGroupId=true
}
