# What the files sync-*.t share: nodes that keep one registry through Redis, changes on one, and what the
# others, Redis and the logs say of them.

use strict;
use warnings;

use RegistryTest;

our $INTERVAL = 0.2 * time_scale();
# What a machine that is busy with other tests may add to a time.
our $SLACK = 1 * time_scale();

sub ms { my ($seconds) = @_; return int(1000 * $seconds) . 'ms' }

# A node with the upstreams default (at /), other (at /other/), and those in spaces, of the registry main.
# redis: one of RegistryTest->redis, or an URL; settings: directives of the block, by name (undef: none).
# Everything else as for RegistryTest->nginx.
sub node {
    my (%opt) = @_;
    my $redis = delete $opt{redis};
    my %settings = (
        heartbeat_ttl => '1h', cleanup_interval => '100ms', redis => ref $redis ? $redis->url : $redis,
        redis_interval => ms($INTERVAL), redis_timeout => ms(0.5 * time_scale()), %{ delete $opt{settings} || {} },
    );
    my $settings = join ' ', map { defined $settings{$_} ? "$_ $settings{$_};" : () } sort keys %settings;
    my @spaces = ('default', 'other', @{ delete $opt{spaces} || [] });
    my $inside = delete $opt{inside} || '';    # of each upstream
    my $http = delete $opt{http} || '';
    my $server = delete $opt{server} || '';
    return RegistryTest->nginx(
        workers => 2,
        http => "registry main 1m { $settings }\n" . join('', map { "upstream $_ { registry main; $inside }\n" } @spaces) . $http,
        server => 'location /upstream/ { registry_api main; add_header X-Worker $pid always; }
            location / { proxy_pass http://default; }
            ' . join('', map { "location /$_/ { proxy_pass http://$_; }\n" } grep { $_ ne 'default' } @spaces) . $server,
        %opt,
    );
}

# Changes

# One request of the API about a server: an address, or a backend. ns => another namespace.
sub call {
    my ($node, $endpoint, $server, %fields) = @_;
    my ($host, $port) = (ref $server ? $server->address : $server) =~ /^(.*):(\d+)$/;
    return api($node, $endpoint, { ns => 'default', host => $host, port => $port, %fields });
}

# One that must succeed; returns its data.
sub change {
    my ($node, $endpoint, $server, %fields) = @_;
    my $response = call($node, $endpoint, $server, %fields);
    die "$endpoint $server: $response->{status} " . ($response->{error} || $response->{body}) . "\n"
        unless $response->{status} == 200;
    return $response->{json}{data};
}
sub disable { my ($node, $server) = @_; return change($node, toggle => $server, action => 'disable') }
sub enable  { my ($node, $server) = @_; return change($node, toggle => $server, action => 'enable') }

# What a node says

# A server as status has it; nothing when it is not known.
sub server {
    my ($node, $server, $ns) = @_;
    $server = $server->address if ref $server;
    my $known = eval { servers($node, $ns || 'default') } or return;
    return $known->{$server};
}

# The addresses that a node knows, in order, as text.
sub known { my ($node, $ns) = @_; my $servers = eval { servers($node, $ns || 'default') }; return join ' ', sort keys %{ $servers || {} } }

# Waits until a server is as said: field => value ('true', 'false', and undef for null). {} is a server that is there,
# undef one that is not. One test.
sub becomes {
    my ($node, $server, $expected, $name, %opt) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    $server = $server->address if ref $server;
    my $is;
    my $ok = wait_until(sub {
        $is = server($node, $server, $opt{ns});
        return !$is unless $expected;
        return $is && !grep { text($is->{$_}) ne text($expected->{$_}) } keys %$expected;
    }, $opt{timeout});
    return ok($ok, $name) || diag("$server is ", described($is, $expected), ', not ', described($expected, $expected));
}
sub described {
    my ($is, $fields) = @_;
    return !$is ? 'unknown' : !%{ $fields || {} } ? 'known' : join ', ', map { "$_ " . text($is->{$_}) } sort keys %$fields;
}
sub text { my ($value) = @_; return !defined $value ? 'null' : ref $value ? ($value ? 'true' : 'false') : "$value" }

# The object sync of status.
sub sync { my ($node) = @_; return status($node, 'default')->{sync} || {} }
sub connected { my ($node, $timeout) = @_; return wait_until(sub { sync($node)->{connected} }, $timeout) }
sub disconnected { my ($node, $timeout) = @_; return wait_until(sub { !sync($node)->{connected} }, $timeout) }
# Nothing is on its way to Redis any more.
sub pushed { my ($node, $timeout) = @_; return wait_until(sub { my $s = sync($node); $s->{connected} && $s->{pending} == 0 }, $timeout) }

# One test: the nodes are equal, and know just these servers: ADDR, or "ADDR WEIGHT MAX_CONNS ENABLED STATE".
sub agree {
    my ($nodes, $expected, $name, %opt) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $want = join "\n", sort @$expected;
    return ok(same($nodes, $opt{ns} || 'default', timeout => $opt{timeout}, expected => sub {
        my %whole = map { $_ => 1 } @$expected;
        return $want eq join "\n", sort map { $whole{$_} ? $_ : (split / /)[0] } @{ $_[0] };
    }), $name) || diag("expected:\n$want");
}

# The two nodes, and Redis in the three keys, have the same servers with the same settings. One test.
sub redis_agrees {
    my ($redis, $nodes, $name, %opt) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($in_redis, $lines) = ('', []);
    my $ok = wait_until(sub {
        local $SIG{__WARN__} = sub { };
        my $keys = $redis->registry($opt{ns} || 'default', %opt);
        $in_redis = join "\n", sort map {
            my $meta = $keys->{$_}{meta} || {};
            join ' ', $_, map { text($_) } @$meta{qw(weight max_conns enabled)};
        } keys %$keys;
        $lines = same($nodes, $opt{ns} || 'default', timeout => 0) || [];
        return $in_redis eq join "\n", map { s/ \w+$//r } @$lines;
    }, $opt{timeout});
    return ok($ok, $name) || diag("in Redis:\n$in_redis\non the nodes:\n", join "\n", @$lines);
}

# Who answers a number of requests: "a b" when both do.
sub answers {
    my ($node, $count, $path) = @_;
    my %by = map { ($_->{headers}{'x-backend'} || $_->{status}) => 1 }
        map { $node->get($path || '/') } 1 .. $count || 6;
    return join ' ', sort keys %by;
}

# What the log says of Redis

my @SAYS = (
    [ used    => qr/\[notice\] .*registry "main": Redis \S+ is used$/ ],
    [ away    => qr/\[error\] .*registry "main": Redis \S+ can't be used: .+; requests go on, changes are kept until it can$/ ],
    [ again   => qr/\[notice\] .*registry "main": Redis \S+ is used again after \d+\.\d s$/ ],
    [ deaf    => qr/\[warn\] .*registry "main": Redis \S+ can't be listened to: .+; changes of other nodes come within redis_interval instead of at once$/ ],
    [ hears   => qr/\[notice\] .*registry "main": Redis \S+ is listened to again: changes of other nodes come at once$/ ],
    [ lost    => qr/\[warn\] .*registry "main": Redis has lost data: the servers that are known here are written again$/ ],
    [ skipped => qr/\[warn\] .*registry "main": entry ".*" of "\S+" in Redis is skipped: .+$/ ],
    [ alone   => qr/\[warn\] .*registry "main": key "\S+" in Redis is left alone: it is no \w+/ ],
    [ mended  => qr/\[warn\] .*registry "main": key "\S+" in Redis had a wrong type and is made anew$/ ],
    [ missing => qr/\[warn\] .*registry "main": \d+ of \d+ servers are missing in "\S+" in Redis and are written again;/ ],
    [ foreign => qr/\[warn\] .*registry "main": the data in Redis are others than before, .* both are kept$/ ],
    [ behind  => qr/\[warn\] .*registry "main": this node was away from Redis for longer than removals are remembered/ ],
    [ outside => qr/\[notice\] .*registry "main": server \S+ in Redis is not in allow_servers and left out here$/ ],
    [ emptied => qr/\[notice\] .*registry "main": Redis was emptied on purpose: \d+ servers? forgotten$/ ],
);

# One word for each line about Redis, in order: "used away again"; a line that is none of those is there as a whole.
sub redis_log {
    my ($node, $from) = @_;
    return join ' ', map {
        my $line = $_;
        my ($said) = grep { $line =~ $_->[1] } @SAYS;
        $said ? $said->[0] : $line;
    } redis_lines($node, $from);
}
sub redis_lines { my ($node, $from) = @_; return $node->grep_log(qr/registry "main": .*Redis/, $from) }

# One test: just these words. A pattern may stand for them.
sub log_says {
    my ($node, $expected, $name, $from) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $said = redis_log($node, $from);
    my $ok = ref $expected ? like($said, $expected, $name) : is($said, $expected, $name);
    diag(join "\n", redis_lines($node, $from)) unless $ok;
    return $ok;
}

# The value below which that share (0 to 1) of some numbers lies.
sub quantile { my ($share, @numbers) = @_; @numbers = sort { $a <=> $b } @numbers; return $numbers[ $#numbers * $share ] }

# Requests in flight

# So many requests that stay on a backend until their client is closed. Returns the clients.
sub hold {
    my ($node, $count, $path) = @_;
    my @clients = map { $node->client(timeout => 60) } 1 .. $count;
    $_->send('GET ' . ($path || '/') . "?hang=1 HTTP/1.1\r\nHost: x\r\n\r\n") for @clients;
    return @clients;
}
sub release { $_->close for @_; return }

# The process of a node that talks to Redis (a port): its pid, found by whose socket is connected there.
sub syncing {
    my ($node, $port) = @_;
    my $remote = sprintf ':%04X', ref $port ? $port->port : $port;
    my %inodes;
    for my $line (split /\n/, slurp('/proc/net/tcp')) {
        my (undef, undef, $to, $state, @rest) = split ' ', $line;
        $inodes{ $rest[5] } = 1 if defined $to && $to =~ /$remote$/ && $state eq '01';
    }
    my @found = grep {
        my $pid = $_;
        grep { (readlink($_) || '') =~ /^socket:\[(\d+)\]$/ && $inodes{$1} } glob "/proc/$pid/fd/*";
    } $node->pid, $node->workers, $node->old_workers;
    return @found;
}

1;
