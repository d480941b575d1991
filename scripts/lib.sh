# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
# Shared by the scripts next to it; to be sourced.
#
# A "target" is a directory below build/: the name of a base (10.0), or
# "custom" for the user's own tree in QEMU_SRC.

set -euo pipefail
shopt -s inherit_errexit
export LC_ALL=C

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
[ -n "${HOME:-}" ] || export HOME=~
cache=${QMHS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/qemu-migration-handshake}

# Progress goes to stderr: stdout belongs to results.
say() { printf '==> %s\n' "$*" >&2; }

# say_error WHAT-HAPPENED [WHAT-TO-DO...]: one argument a line.
say_error()
{
    printf 'error: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf '       %s\n' "$@" >&2
}

die() { say_error "$@"; exit 1; }

# Names of files are shown as the user may type them.
short() { printf '%s\n' "${1#"$top"/}"; }

# die_of LOG WHAT-HAPPENED: shows what a build has failed of.
die_of()
{
    printf '%s\n' "--- the end of $(short "$1"):" >&2
    { grep -m1 -A20 -E '^FAILED:|: error:|^ERROR:|: ERROR:' "$1" || tail -n 20 "$1"; } | cut -c1-300 >&2
    die "$2" "All of it is in $(short "$1")"
}

# lock FILE: until this script ends.
lock()
{
    mkdir -p "$(dirname "$1")"
    exec 9>"$1"
    flock -n 9 || { say "waiting for another run to finish"; flock 9; }
}

### Packages

# debian_codename: of this machine, if it is a Debian that the scripts know.
debian_codename()
{
    local id name release
    id=$(. /etc/os-release 2>/dev/null && echo "${ID:-}") || id=
    name=$(. /etc/os-release 2>/dev/null && echo "${VERSION_CODENAME:-}") || name=
    release=$(. /etc/os-release 2>/dev/null && echo "${PRETTY_NAME:-}") || release=
    case $id:$name in
    debian:bookworm | debian:trixie | debian:forky | debian:sid) echo "$name" ;;
    *)  die "this is ${release:-an unknown system}; only Debian 12 and newer are supported" \
            "With QEMU's build dependencies installed by hand, your own QEMU tree works:" \
            "make QEMU_SRC=DIR QMHS_NO_INSTALL=1" ;;
    esac
}

# need_packages WHY PACKAGE...: installs what is missing.
need_packages()
{
    local why=$1 missing as_root=() log=$top/build/install.log
    shift
    [ -z "${QMHS_NO_INSTALL:-}" ] || return 0
    debian_codename >/dev/null
    mapfile -t missing < <(
        { dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null || true; } |
            sed -n 's/^installed //p' | sort -u | comm -13 - <(printf '%s\n' "$@" | sort))
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        as_root=(sudo)
        [ -t 0 ] || as_root+=(-n)
        "${as_root[@]}" true 2>/dev/null ||
            die "packages are missing $why, and they can only be installed as root" \
                "apt-get install --no-install-recommends ${missing[*]}"
    fi
    say "installing packages $why: ${missing[*]}"
    mkdir -p "$top/build"
    as_root+=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y)
    # A fresh container has no package lists, an old one stale ones.
    "${as_root[@]}" install --no-install-recommends "${missing[@]}" >"$log" 2>&1 </dev/null ||
    { "${as_root[@]}" update &&
      "${as_root[@]}" install --no-install-recommends "${missing[@]}"; } >>"$log" 2>&1 </dev/null ||
        die "installing packages failed: $(grep '^E:' "$log" | tail -n1)" \
            "Is the network up? All of it is in $(short "$log")"
}

# need_build_packages: all that fetching, building and running takes, in one go.
need_build_packages()
{
    local packages=(
        ca-certificates debian-archive-keyring dpkg-dev xz-utils    # to fetch and unpack
        git patch perl                                              # to patch; checkpatch
        gcc libc6-dev ccache ninja-build pkgconf python3-venv
        libglib2.0-dev zlib1g-dev libzstd-dev
        libgnutls28-dev libtasn1-6-dev                              # the tests of TLS take both
        libfdt-dev                                                  # boards of Arm and POWER; else objects differ by machine
        seabios qemu-system-data ipxe-qemu)                         # Debian's source has no firmware
    # Debian 12's meson is too old: scripts/build has a way.
    [ -n "${QMHS_NO_INSTALL:-}" ] || [ "$(debian_codename)" = bookworm ] || packages+=(meson)
    need_packages "to fetch, build and run QEMU" "${packages[@]}"
}

# targets_of BUILD: the architectures of guests that are to be built there, one a
# line: x86_64, those that were built before, and those that the user asks for.
targets_of()
{
    local target all=' x86_64 i386 aarch64 s390x ppc64 ' asked=${QMHS_TARGETS:-}
    for target in ${asked//,/ }; do
        [[ $all = *" $target "* ]] || die "'$target' is no target of this project" "Targets:${all% }"
    done
    { echo x86_64; cat "$1/.targets" 2>/dev/null || true; tr ', ' '\n\n' <<<"$asked"; } | awk 'NF && !seen[$0]++'
}

# apt_private SUITE COMMAND...: apt for one other suite of Debian. Lists,
# downloads and configuration are our own, the machine's stay as they are.
apt_options=()      # for all of them
apt_private()
{
    local dir=$cache/apt/$1 command=$2
    shift 2
    mkdir -p "$dir"/{lists,archives}/partial "$dir/parts"
    "$command" -q -o Dir::Etc::SourceList="$dir/sources.list" -o Dir::Etc::SourceParts="$dir/parts" \
        -o Dir::State::Lists="$dir/lists" -o Dir::Cache="$dir" -o Dir::Cache::Archives="$dir/archives" \
        -o APT::Sandbox::User="$(id -un)" -o APT::Update::Error-Mode=any -o Acquire::Languages=none \
        -o Acquire::Retries=1 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 "${apt_options[@]}" "$@"
}

# apt_private_update deb|deb-src SUITE: fails if no mirror answers.
apt_private_update()
{
    local type=$1 suite=$2 dir=$cache/apt/$2 mirror codename
    codename=$(debian_codename)
    mkdir -p "$dir"
    : >"$dir/update.log"
    # The machine's own apt knows a mirror that can be reached. Where it
    # knows several repositories of that name, the signature decides.
    for mirror in $(apt-get indextargets --format '$(REPO_URI)|$(RELEASE)|$(COMPONENT)' |
                    awk -F'|' -v name="$codename" '
                        $3 == "main" && ($2 == name || $2 ~ /^((old)*stable|testing|unstable|sid)$/) &&
                        !seen[$1]++ { print $1 }'); do
        echo "$type [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" \
            >"$dir/sources.list"
        ! apt_private "$suite" apt-get update >>"$dir/update.log" 2>&1 </dev/null || return 0
    done
    return 1
}

# ask_suite deb|deb-src SUITE WHAT FALLBACK [ADVICE]: fails if no mirror answers,
# and there is a FALLBACK in the cache.
ask_suite()
{
    say "asking Debian $2 for $3"
    ! apt_private_update "$1" "$2" || return 0
    [ -z "$4" ] || { say "no mirror answers; using $(basename "$4") of the cache"; return 1; }
    die "$3 cannot be fetched: no Debian mirror that apt of this machine knows answers" \
        "$(grep -E '^(E|W):' "$cache/apt/$2/update.log" | head -n1)" \
        "Try again when the network is up${5:+, $5}"
}

# fetch_backports LOG: prints the directory with two packages that Debian 12 has
# too old, and backports of them, which are not installed: meson (QEMU needs 1.5),
# and SeaBIOS, which waits for 32 s on the AHCI of such a QEMU before it boots a
# guest.
fetch_backports()
(
    suite=bookworm-backports
    backports=$cache/$suite
    if [ ! -d "$backports" ]; then
        lock "$cache/.$suite.lock"
        say "fetching newer meson and SeaBIOS from $suite into the cache, to build and run QEMU"
        rm -rf "$backports.tmp" && mkdir -p "$backports.tmp"
        { apt_private_update deb $suite &&
          cd "$backports.tmp" && apt_private $suite apt-get download meson seabios &&
          for deb in *.deb; do dpkg-deb -x "$deb" . && rm "$deb"; done; } >"$1" 2>&1 </dev/null ||
            die "they cannot be fetched: $(cat "$cache/apt/$suite/update.log" "$1" | grep '^[EW]:' | tail -n1)" \
                "Try again when the network is up."
        [ -d "$backports" ] || mv "$backports.tmp" "$backports"
    fi
    echo "$backports"
)

### QEMU's sources

# is_qemu DIR
is_qemu() { [ -f "$1/VERSION" ] && [ -f "$1/configure" ] && [ -d "$1/migration" ]; }

# pristine_of TARGET: the directory of the untouched QEMU.
pristine_of()
{
    [ "$1" = custom ] || { "$top/scripts/fetch-qemu" "$1"; return; }
    [ -n "${QEMU_SRC:-}" ] || die "QEMU_SRC is not set" "make QEMU_SRC=DIR, where DIR is a QEMU source tree"
    is_qemu "$QEMU_SRC" ||
        die "QEMU_SRC=$QEMU_SRC is not a QEMU source tree (no VERSION, configure, migration/)"
    realpath "$QEMU_SRC"
}

# base_of TREE: the release that its patches are for, as x.y. From x.y.50 on it is
# the way to the next one: 11.0.50 is of 11.1. QEMU has three releases a year.
base_of()
{
    local version major minor point
    version=$(head -n1 "$1/VERSION")
    [[ $version =~ ^([0-9]+)\.([0-9]+)\.([0-9]+) ]] ||
        die "$1/VERSION says '$version', which is no version of QEMU" "Give a source tree of QEMU: make QEMU_SRC=DIR"
    major=${BASH_REMATCH[1]} minor=${BASH_REMATCH[2]} point=${BASH_REMATCH[3]}
    if [ "$point" -lt 50 ]; then
        :
    elif [ "$minor" -lt 2 ]; then
        minor=$((minor + 1))
    else
        major=$((major + 1)) minor=0
    fi
    echo "$major.$minor"
}

# bases: those that there are patches for, the oldest first.
bases() { (cd "$top/patches" && printf '%s\n' [0-9]*) | sort -V; }

# patches_of TARGET PRISTINE: the directory of the patches that fit it.
patches_of()
{
    local base=$1 all
    [ "$1" != custom ] || base=$(base_of "$2")
    [ ! -d "$top/patches/$base" ] || { echo "$top/patches/$base"; return; }
    all=$(bases | paste -sd' ')
    die "there are no patches for QEMU $base (found VERSION $(<"$2/VERSION") in $2)" \
        "Give a tree of one of ${all:-none}."
}

# list_files PRISTINE: every file as "path TAB size TAB mtime TAB type". Of a
# git checkout what git knows, and the subprojects that meson downloaded.
list_files()
(
    cd "$1"
    if [ -e .git ]; then
        git -c safe.directory='*' ls-files -z --cached --others --exclude-standard
        find subprojects -mindepth 2 -name .git -prune -o -not -type d -print0
    else
        # Build directories are the ones with a build.ninja.
        find . -mindepth 1 -maxdepth 3 -name build.ninja -printf '%h\0' >"$2.builds"
        find . -mindepth 1 \( -path ./build -o -path ./.pc \
            $(xargs -0 -r printf '-o -path %s ' <"$2.builds") \) -prune -o -not -type d -printf '%P\0'
        rm "$2.builds"
    fi |
        # The firmware's sources are two thirds of QEMU's and not built here.
        grep -zv '^roms/' |
        { xargs -0 stat --printf '%n\t%s\t%.9Y\t%F\n' 2>/dev/null || true; } |
        grep -v $'\tdirectory$' | sort -u >"$2"
)

# copy_files FROM TO <LIST: with new time stamps, so that ninja sees them.
copy_files() { tar -C "$1" -c --no-recursion --verbatim-files-from -T - | tar -C "$2" -x -m; }

### Patches

# read_parts DIR: sets parts to the names of the directories in it, and patches
# to what stands in them, in order. Each part has a cover letter, for all bases.
read_parts()
{
    local file part
    parts=() patches=()
    for part in "$1"/*/; do
        part=${part%/}
        [ -d "$part" ] || continue
        for file in "$part"/*.patch; do
            [ ! -f "$file" ] || patches+=("$file")
        done
        parts+=("${part##*/}")
        [ -f "$(cover_of "${part##*/}")" ] ||
            die "$(short "$part") has no cover letter: $(short "$(cover_of "${part##*/}")") is missing"
    done
    [ ${#patches[@]} -gt 0 ] || die "there is no patch in $(short "$1")"
    for file in "$1"/*.patch; do
        [ ! -f "$file" ] || die "$(short "$file") belongs to no part" "Move it into one of: ${parts[*]}"
    done
}

# cover_of PART: its first line is the subject.
cover_of() { printf '%s\n' "$top/patches/cover/$1.txt"; }

# new_files PATCH...: the files of ours that the patches bring, named where
# git am drops it.
new_files() { [ $# -eq 0 ] || awk 'FNR == 1 { on = 0 } /^---$/ { on = 1 } /^diff --git / { on = 0 }
                                   on && sub(/^New-file: */, "")' "$@"; }

# diffs_of [-v] LIST PATCH: of its diffs those of the files in LIST, or all others.
# A file of ours stands in the repository as the last patch leaves it; patches
# after the one that brings it say how they change it.
diffs_of()
{
    local others=0
    [ "$1" != -v ] || { others=1; shift; }
    awk -v list="$1" -v others="$others" '
        BEGIN { while ((getline name <list) > 0) listed[name] }
        /^diff --git / { name = $4; sub(/^b\//, "", name); on = (name in listed) != others }
        on' "$2"
}

# patched_files PATCH...
patched_files() { [ $# -eq 0 ] || sed -n 's,^diff --git a/.* b/,,p' "$@" | sort -u; }

# context_of BASE: the lines of context that its patches have. As little as can be
# of the newer ones, whose sources are nobody's package but the users' own.
context_of() { if [ "${1%%.*}" -lt 11 ]; then echo 2; else echo 1; fi; }

# has_no_series PRISTINE NAMES: NAMES, sorted, are the files that it has. Sees to it
# that no file of ours is among them, and that each of ours is here.
has_no_series()
{
    local name theirs patch
    while read -r name; do
        [ -f "$top/$name" ] || die "a patch in $(short "$patch_dir") says New-file: $name, which does not exist"
    done < <(new_files "${patches[@]}")
    mapfile -t theirs < <(new_files "${patches[@]}" | sort | comm -12 - "$2")
    [ ${#theirs[@]} -gt 0 ] || return 0
    for patch in "${patches[@]}"; do
        ! new_files "$patch" | grep -qxF "${theirs[0]}" || break
    done
    die "$(short "$patch") does not apply to QEMU $(<"$1/VERSION") in $1, which has ${theirs[0]} already" \
        "The tree has this series, or a part of it: give one without. It was not changed."
}

# apply_patch DIR PATCH REJECTS PRISTINE [LIST]: all of it, or what it does to files
# that are not in LIST. DIR is a copy of files of PRISTINE. A fuzz of one line and any
# offset are the drift of a point release; without context nothing would be left.
apply_patch()
{
    local fuzz base dir=$1 patch=$2 log=$3 pristine=$4 list=${5:-/dev/null} had astray
    base=$(basename "$(dirname "$(dirname "$2")")")
    fuzz=$(($(context_of "$base") - 1))
    mkdir -p "$(dirname "$log")"
    diffs_of -v "$list" "$patch" >"$log.diff"
    mkdir -p "$log.before"
    patched_files "$log.diff" | (cd "$dir" && xargs -r cp --parents -t "$log.before" 2>/dev/null) || true
    if patch -d "$dir" -p1 "-F$fuzz" -f --no-backup-if-mismatch <"$log.diff" >"$log" 2>&1; then
        astray=$(hunks_astray "$log.before" "$log.diff" "$log")
        [ -n "$astray" ] || { rm -rf "$log" "$log".*; return; }
    else
        astray=
        find "$dir" -name '*.rej' -exec cat {} + >>"$log"
    fi
    set -- "$(short "$patch") does not apply to QEMU $(<"$pristine/VERSION") in $pristine:" \
        "${astray:-$(awk '/^patching file/ { f = $3 } /FAILED at|ignored/ { print sep f ": " $0; sep = "       " }
                /find file to patch/ { print sep $0; sep = "       " }' "$log")}"
    had=$(patch_that_is_in "$pristine" "$log.diff") || had=
    rm -rf "$log".*
    if [ -n "$had" ]; then
        die "$@" "The tree has $(short "$had") already." \
            "Give one without this series, or without that change. It was not changed."
    fi
    die "$@" "The tree was not changed. Correct the patch's context, or give another point release;" \
        "what was rejected is in $(short "$log")"
}

# hunks_astray BEFORE DIFF LOG: of the hunks that LOG says have been found at another
# line, those that are in another function, or after another declaration, than DIFF
# says. With a line or two of context patch may take the wrong place for the right one.
hunks_astray()
{
    awk -v before="$1" '
        FNR == NR && /^patching file/ { file = $3 }
        FNR == NR && / succeeded at .*\(offset/ { moved[file, substr($2, 2)] = substr($0, index($0, "(offset") + 8) + 0 }
        FNR == NR { next }
        /^\+\+\+ b\// { file = substr($2, 3); n = 0; next }
        /^@@ / {
            n++
            start[file, n] = substr($2, 2) + 0
            name[file, n] = $0
            sub(/^@@ [^@]*@@ ?/, "", name[file, n])
        }
        END {
            for (hunk in moved) {
                split(hunk, part, SUBSEP)
                # git has other rules for what a name is in other languages.
                if (part[1] !~ /\.(c|h|json|hx|build|rst)$/)
                    continue
                found = ""
                path = before "/" part[1]
                for (i = 1; i < start[hunk] + moved[hunk] && (getline line <path) > 0; i++)
                    if (line ~ /^[A-Za-z_$]/)
                        found = substr(line, 1, 80)
                close(path)
                sub(/[ \t]+$/, "", found)
                if (found != name[hunk]) {
                    printf "%s%s: Hunk #%s is in \"%s\" there, and not in \"%s\"", sep, part[1], part[2], found, name[hunk]
                    sep = "\n       "
                }
            }
        }' "$3" "$2"
}

# patch_that_is_in PRISTINE SCRATCH: the last patch that can be taken out of it.
patch_that_is_in()
{
    local i
    new_files "${patches[@]}" >"$2.ours"
    for ((i = ${#patches[@]} - 1; i >= 0; i--)); do
        diffs_of -v "$2.ours" "${patches[i]}" >"$2"
        [ ! -s "$2" ] || ! patch -d "$1" -R -p1 -F0 -f --dry-run <"$2" >/dev/null 2>&1 ||
            { echo "${patches[i]}"; return; }
    done
    return 1
}

# part_of PATCH
part_of() { basename "$(dirname "$1")"; }

# ranges_of_parts COMMIT: each part, the empty commit before it, and its last one.
ranges_of_parts()
{
    git log --reverse --format='%H %s' "base..$1" | awk '
        $2 == "part:" { if (part) print part, first, last; part = $3; first = $1 }
        { last = $1 }
        !part { print "a commit before the first part: " $0 >"/dev/stderr"; exit 1 }
        END { if (part) print part, first, last }'
}

# series_git_environment: the series does not depend on the user's git.
series_git_environment()
{
    export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_TERMINAL_PROMPT=0
    export GIT_AUTHOR_NAME=QEMU GIT_AUTHOR_EMAIL=qemu-devel@nongnu.org
    export GIT_COMMITTER_NAME=QEMU GIT_COMMITTER_EMAIL=qemu-devel@nongnu.org
    export GIT_COMMITTER_DATE=2000-01-01T00:00:00Z
    unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
}

### Tests, in the build directory

# qmp_path BUILD: where Python finds qemu.qmp. From 11.0 on it is no part of QEMU's
# tree, but QEMU's configure installs it for its own tests.
qmp_path()
{
    local dir
    for dir in "$1/src/python" "$1"/pyvenv/lib/python3*/site-packages "$cache"/src/qemu-10.*/python; do
        [ ! -d "$dir/qemu/qmp" ] || { echo "$dir"; return; }
    done
    die "there is no Python package qemu.qmp" "Debian has it as python3-qemu-qmp; or run make."
}

# unit_tests: ours, and QEMU's own of what a patch changes.
unit_tests()
{
    sed -nE 's,^build (tests/unit/test-(migration-handshake[^ :./]*|qobject-input-visitor)):.*,\1,p' build.ninja | sort -u
}

# test_environment [ARCHITECTURE]: what they are run with.
test_environment()
{
    export QTEST_QEMU_BINARY=$PWD/qemu-system-${1:-x86_64} QTEST_QEMU_IMG=$PWD/qemu-img
    export PYTHON=$PWD/pyvenv/bin/python3        # for analyze-script
    # As meson has it for unit tests.
    export G_TEST_SRCDIR=$PWD/src/tests/unit G_TEST_BUILDDIR=$PWD/tests/unit
}

# list_qtests OPTION...
list_qtests() { "$top/scripts/hide-broken-kvm" tests/qtest/migration-test --full "$@" -l | grep ^/; }
