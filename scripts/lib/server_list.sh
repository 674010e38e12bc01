# shellcheck shell=bash
# Files of servers, as scripts/init_redis.sh takes them: a server a line,
#
#   HOST:PORT [weight=N] [max_conns=N] [disabled]   # a comment
#
# with addresses and names in any form and read into the one form that nodes accept. Sourced, never
# run; after common.sh.

# read_v4 TEXT: sets octets.
read_v4() {
    local i
    [[ $1 =~ ^[0-9]{1,3}(\.[0-9]{1,3}){3}$ ]] || return 1
    IFS=. read -ra octets <<<"$1"
    for i in 0 1 2 3; do
        octets[i]=$((10#${octets[i]}))
        ((octets[i] <= 255)) || return 1
    done
}
# read_v6 TEXT: sets groups, eight numbers.
read_v6() {
    local text=$1 part='^([0-9A-Fa-f]{1,4}(:[0-9A-Fa-f]{1,4})*)?$' before after group
    if [[ $text == *:*.* ]]; then # the last 32 bits as an IPv4 address
        read_v4 "${text##*:}" || return 1
        printf -v text '%s:%x:%x' "${text%:*}" $((octets[0] * 256 + octets[1])) $((octets[2] * 256 + octets[3]))
    fi
    [[ $text == *:* ]] || return 1
    before=${text%%::*} after=
    [[ $text != *::* ]] || after=${text#*::}
    [[ $before =~ $part && $after =~ $part ]] || return 1
    IFS=: read -ra before <<<"$before"
    IFS=: read -ra after <<<"$after"
    if [[ $text == *::* ]]; then
        ((${#before[@]} + ${#after[@]} < 8)) || return 1
        while ((${#before[@]} + ${#after[@]} < 8)); do before+=(0); done
    fi
    groups=()
    for group in ${before[@]+"${before[@]}"} ${after[@]+"${after[@]}"}; do
        groups+=($((16#$group)))
    done
    ((${#groups[@]} == 8))
}
# print_v6: sets host from groups, as RFC 5952 says: lower case, no leading zeros, and
# the longest run of zeros, the first of equal ones, as ::
print_v6() {
    local i start=0 length=0 best=-1 longest=1
    for ((i = 0; i <= 8; i++)); do
        if ((i < 8 && groups[i] == 0)); then
            ((length++ > 0)) || start=$i
        else
            if ((length > longest)); then
                best=$start longest=$length
            fi
            length=0
        fi
    done
    host=
    for ((i = 0; i < 8; i++)); do
        if ((i == best)); then
            host+=::
            ((i += longest - 1))
        else
            [[ -z $host || $host == *:: ]] || host+=:
            printf -v host '%s%x' "$host" "${groups[i]}"
        fi
    done
}
# read_name TEXT: sets host, in lower case and without a full stop at the end.
read_name() {
    local part='[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?' text=${1%.} last
    [[ $text =~ ^$part(\.$part)*$ ]] && ((${#text} <= 106)) || return 1
    # What ends like a number was meant to be an address.
    last=${text##*.}
    [[ ! $last =~ ^([0-9]+|0x[0-9A-Fa-f]*)$ ]] || return 1
    host=${text,,}
}
# read_address HOST:PORT: sets addr, host and port in the one form that nodes accept, or
# complaint.
read_address() {
    local octets=() groups=() text
    complaint=
    if [[ $1 =~ ^\[([^]]*)\]:([0-9]+)$ || $1 =~ ^([^]:[]+):([0-9]+)$ ]]; then
        text=${BASH_REMATCH[1]} port=${BASH_REMATCH[2]}
    elif [[ $1 == *:*:* && $1 != \[* ]]; then
        complaint="IPv6 goes in brackets, [ADDRESS]:PORT, not $1"
        return
    else
        complaint="a server is HOST:PORT, not $1"
        return
    fi
    if [[ ${#port} -gt 5 ]] || ((10#$port < 1 || 10#$port > 65535)); then
        complaint="the port must be 1 to 65535, not $port"
        return
    fi
    port=$((10#$port))
    if [[ $1 != \[* ]] && read_v4 "$text"; then
        printf -v host '%s.%s.%s.%s' "${octets[@]}"
    elif [[ $1 == \[* ]] && read_v6 "$text"; then
        # IPv4 mapped into IPv6 is IPv4.
        if [[ ${groups[*]:0:6} == '0 0 0 0 0 65535' ]]; then
            host=$((groups[6] >> 8)).$((groups[6] & 255)).$((groups[7] >> 8)).$((groups[7] & 255))
        else
            print_v6
        fi
    elif [[ $1 == \[* ]] || ! read_name "$text"; then
        complaint="the host must be an IP address or a name, not $text"
        return
    fi
    if [[ $host == 0.0.0.0 || $host == :: ]]; then
        complaint="the host must not be the unspecified address"
    fi
    addr=$host:$port
    [[ $host != *:* ]] || addr="[$host]:$port"
}
# read_option WORD: sets weight, max_conns or enabled, or complaint.
read_option() {
    local value=${1#*=}
    case $1 in
        disabled) enabled=false ;;
        weight=* | max_conns=*)
            local most=65535
            [[ $1 == weight=* ]] || most=2147483647
            if [[ ! $value =~ ^[0-9]{1,10}$ ]] || ((10#$value > most)); then
                complaint="${1%%=*} must be a whole number from 0 to $most, not $value"
            else
                printf -v "${1%%=*}" '%d' $((10#$value))
            fi
            ;;
        *) complaint="after the address there may be weight=N, max_conns=N and disabled, not $1" ;;
    esac
}

# read_servers FILE: - is stdin. Sets servers, each "addr host port weight max_conns
# enabled"; what is wrong with lines ends this script.
servers=()
read_servers() {
    local line words word number=0 bad=no
    local addr host port weight max_conns enabled complaint
    local -A seen=()
    local name=$1 source=$1
    if [[ $1 == - ]]; then
        name=stdin source=/dev/stdin
    fi
    [[ -r $source && ! -d $source ]] || die_usage "can't read $name"
    while IFS= read -r line || [[ -n $line ]]; do
        number=$((number + 1))
        line=${line%%#*}
        read -ra words <<<"${line%$'\r'}"
        ((${#words[@]})) || continue
        weight=1 max_conns=1000 enabled=true
        read_address "${words[0]}"
        for word in "${words[@]:1}"; do
            [[ -n $complaint ]] || read_option "$word"
        done
        if [[ -z $complaint && -n ${seen[$addr]-} ]]; then
            complaint="$addr stands in line ${seen[$addr]} already"
        fi
        if [[ -n $complaint ]]; then
            printf '%s line %d: %s\n' "$name" "$number" "$complaint" >&2
            bad=yes
            continue
        fi
        seen[$addr]=$number
        servers+=("$addr $host $port $weight $max_conns $enabled")
    done <"$source"
    [[ $bad == no ]] || die_usage "$name has lines that are wrong; nothing was written"
    ((${#servers[@]})) || die_usage "$name has no servers; nothing was written"
}
