# shellcheck shell=bash
# A Redis named by a URL, spoken to by redis-cli. Sourced, never run; after common.sh.
#
# URLs are those of the directive redis. No message has any part of one that may be a
# password, and redis-cli gets the password by its own environment: no process list has it.

# Where the caller may say more: a file of CA certificates, seconds for each answer.
redis_cacert=
redis_timeout=5
# What redis_url finds out. redis_name is the URL without its user and password.
redis_name='' redis_cluster=no
_tls=no _socket='' _db=0 _service='' _user='' _password='' _sentinel_user='' _sentinel_password=''
_seeds=()   # "host port", of which one must answer
_server=    # the one that does

wrong_url() { die_usage "the URL of Redis: $1"; }

# _decode TEXT: sets decoded; %40 is @.
_decode() {
    local bad='%($|[^0-9A-Fa-f]|.($|[^0-9A-Fa-f]))'
    [[ ! $1 =~ $bad ]] || wrong_url "\"%\" is followed by two hexadecimal digits (%25 is \"%\" itself)"
    decoded=${1//\\/\\\\}
    [[ $decoded != *%00* ]] && printf -v decoded '%b' "${decoded//%/\\x}"
    [[ $decoded != *[[:cntrl:]]* && $decoded != *%00* ]] || wrong_url "there are control characters in it"
}

# _read_hosts HOST[:PORT],... DEFAULT_PORT: adds to redis_name what it reads.
_read_hosts() {
    local hosts=() one host port comma=
    IFS=, read -ra hosts <<<"$1,"
    for one in "${hosts[@]}"; do
        if [[ $one =~ ^\[([0-9A-Fa-f:.]+)\](:([0-9]{1,5}))?$ || $one =~ ^([A-Za-z0-9._-]+)(:([0-9]{1,5}))?$ ]]; then
            host=${BASH_REMATCH[1]} port=$((10#${BASH_REMATCH[3]:-$2}))
        else
            wrong_url "a host is a name, an IPv4 address or an IPv6 address in brackets, and :PORT may follow"
        fi
        ((port >= 1 && port <= 65535)) || wrong_url "a port is a number from 1 to 65535"
        _seeds+=("$host $port")
        [[ $host != *:* ]] || host="[$host]"
        redis_name+=$comma$host:$port
        comma=,
    done
}

# redis_url URL: understands it, or ends this script.
redis_url() {
    local scheme rest=$1 query='' path='' userinfo pair pairs=() decoded
    local schemes="it begins with redis://, rediss:// (TLS), unix:/, redis+sentinel:// or redis+cluster://"
    [[ $rest == *:* ]] || wrong_url "$schemes"
    [[ $rest != *[[:space:][:cntrl:]\#]* ]] || wrong_url "spaces and \"#\" are written %20 and %23"
    scheme=${rest%%:*} rest=${rest#*:}
    scheme=${scheme,,}
    if [[ $rest == *\?* ]]; then
        query=${rest#*\?} rest=${rest%%\?*}
    fi
    _password=${REDISCLI_AUTH-}
    unset REDISCLI_AUTH
    case ${scheme/#valkey/redis} in
        unix | redis+unix)
            _socket=${rest#//}
            [[ $_socket == /* ]] || wrong_url "the path of a socket is absolute: unix:/PATH"
            redis_name=unix:$_socket
            ;;
        redis | rediss | redis+cluster | rediss+cluster | redis+sentinel | rediss+sentinel)
            [[ $rest == //* ]] || wrong_url "$scheme: is followed by //"
            rest=${rest#//}
            if [[ $rest == */* ]]; then
                path=${rest#*/} rest=${rest%%/*}
            fi
            if [[ $rest == *@*@* || $path == *@* ]] || [[ $query == *@* && $scheme != *+sentinel ]]; then
                wrong_url "in a user name or password \"/\", \"?\" and \"@\" are written %2F, %3F and %40"
            fi
            if [[ $rest == *@* ]]; then
                userinfo=${rest%@*} rest=${rest##*@}
                [[ $userinfo == *:* ]] || wrong_url "a user name needs a password: USER:PASSWORD@"
                _decode "${userinfo%%:*}"
                _user=$decoded
                _decode "${userinfo#*:}"
                _password=$decoded
            fi
            redis_name=$scheme://
            ;;
        *) wrong_url "$schemes" ;;
    esac
    [[ $scheme != rediss* && $scheme != valkeys* ]] || _tls=yes
    case $scheme in
        *+sentinel)
            _read_hosts "$rest" 26379
            _decode "${path%%/*}"
            _service=$decoded
            [[ -n $_service ]] || wrong_url "the sentinels are followed by /SERVICE"
            [[ $path == */* ]] && path=${path#*/} || path=
            redis_name+=/$_service
            ;;
        *+cluster)
            _read_hosts "$rest" 6379
            redis_cluster=yes
            [[ -z $path || $path =~ ^0+$ ]] || wrong_url "a cluster has no database but 0"
            ;;
        *unix) ;;
        *)
            _read_hosts "$rest" 6379
            ((${#_seeds[@]} == 1)) || wrong_url "several hosts go with redis+sentinel:// or redis+cluster://"
            ;;
    esac
    _db=${path:-0}
    IFS='&' read -ra pairs <<<"$query"
    for pair in ${pairs[@]+"${pairs[@]}"}; do
        _decode "${pair#*=}"
        case $scheme:$pair in
            *unix:db=*) _db=$decoded ;;
            *unix:user=*) _user=$decoded ;;
            *unix:pass=*) _password=$decoded ;;
            *+sentinel:sentinel_user=*) _sentinel_user=$decoded ;;
            *+sentinel:sentinel_password=*) _sentinel_password=$decoded ;;
            *) wrong_url "after \"?\" there may be db, user and pass with unix:, sentinel_user and sentinel_password with redis+sentinel:" ;;
        esac
    done
    [[ $_db =~ ^[0-9]{1,9}$ ]] || wrong_url "the database is a number"
    _db=$((10#$_db))
    case $scheme in
        *+cluster) ;;
        *unix) ((_db == 0)) || redis_name+="?db=$_db" ;;
        *) redis_name+=/$_db ;;
    esac
    [[ -z $redis_cacert || $_tls == yes ]] || die_usage "--cacert goes with rediss://"
}

# _call "HOST PORT" USER PASSWORD ARGUMENT...: sets answer, which begins with what
# redis-cli has to complain about, and code.
_call() {
    local address=$1 user=$2 password=$3 arguments=(--raw)
    shift 3
    if [[ -n $_socket ]]; then
        arguments+=(-s "$_socket")
    else
        arguments+=(-h "${address% *}" -p "${address#* }")
    fi
    if [[ $_tls == yes ]]; then
        arguments+=(--tls ${redis_cacert:+--cacert "$redis_cacert"})
        # Names only: addresses have no place there.
        [[ ! ${address% *} =~ [g-z] ]] || arguments+=(--sni "${address% *}")
    fi
    [[ -z $user || -z $password ]] || arguments+=(--user "$user")
    code=0
    answer=$(
        [[ -z $password ]] || export REDISCLI_AUTH=$password
        exec timeout "$redis_timeout" redis-cli "${arguments[@]}" "$@" 2>&1
    ) || code=$?
}

# redis_failed [MORE]: ends this script with what has gone wrong, in one line.
redis_failed() {
    local reason=${answer%%$'\n'*}
    reason=${reason%% script: *}
    ((code != 124)) || reason="no answer within $redis_timeout s${1-}"
    case $reason in
        *NOPERM* | *'The user executing the script'*) reason="the user may not do this (${reason#AUTH failed: }); README.md lists what must be allowed" ;;
        'AUTH failed: '* | WRONGPASS*) reason="the user or the password is wrong" ;;
        NOAUTH*) reason="it wants a password: give the URL with one, in REDIS_URL" ;;
        *READONLY*) reason="it is a read-only replica: give the URL of its master" ;;
        MOVED* | CROSSSLOT*) reason="it is a cluster: give --cluster" ;;
        'Could not connect'*': '*) reason="can't connect: ${reason##*: }" ;;
        '') reason="no answer" ;;
    esac
    die "Redis at $redis_name: $reason"
}

# redis_find: which of the hosts is it? A sentinel is asked for the master.
redis_find() {
    local seed master
    _server=${_seeds[0]-}
    [[ -n $_service || ${#_seeds[@]} -gt 1 ]] || return 0
    for seed in "${_seeds[@]}"; do
        if [[ -n $_service ]]; then
            _call "$seed" "$_sentinel_user" "$_sentinel_password" SENTINEL get-master-addr-by-name "$_service"
            mapfile -t master <<<"$answer"
            if ((code == 0 && ${#master[@]} == 2)) && [[ ${master[1]} =~ ^[0-9]+$ ]]; then
                _server="${master[0]} ${master[1]}"
                return
            fi
            [[ -n $answer || $code != 0 ]] || answer="the sentinel ${seed/ /:} knows no master \"$_service\""
        else
            _call "$seed" "$_user" "$_password" PING
            if [[ $answer == PONG ]]; then
                _server=$seed
                return
            fi
        fi
    done
    redis_failed
}

# redis_script [-x] EVAL...: sets answer to what a script answers after its "ok". What goes
# wrong ends this script; MORE in redis_more is said when there was no answer at all.
redis_more=
redis_script() {
    local hops=0
    _call "$_server" "$_user" "$_password" -n "$_db" "$@"
    # In a cluster it goes where the keys are.
    while [[ $redis_cluster == yes && $answer =~ ^MOVED\ [0-9]+\ (.*):([0-9]+) ]] && ((hops++ < 5)); do
        _server="${BASH_REMATCH[1]:-${_server% *}} ${BASH_REMATCH[2]}"
        _call "$_server" "$_user" "$_password" -n "$_db" "$@"
    done
    if [[ $answer == ok || $answer == ok$'\n'* ]]; then
        answer=${answer#ok}
        answer=${answer#$'\n'}
    elif [[ $answer == changed ]]; then
        die "Redis at $redis_name was filled or wiped by somebody else meanwhile; nothing was changed, try again"
    else
        redis_failed "$redis_more"
    fi
}

# redis_scan PATTERN: sets answer to the names of keys, one a line.
redis_scan() {
    _call "$_server" "$_user" "$_password" -n "$_db" --scan --pattern "$1"
    ((code == 0)) || redis_failed
}
