# What the files health-*.t share: a node whose registries each have health checks of their own, what the
# API and the log say of a server, and how a worker fares meanwhile. Times are in seconds.

use strict;
use warnings;

use RegistryTest;

# Set by the file itself.
our $node;
# Between two checks where a test does not say otherwise.
our $INTERVAL = 0.1 * time_scale();

# A script for probed servers that takes several turns of a worker's event loop.
our $PIECES = [
    'read', [ send => "HTTP/1.1 200 OK\r\nContent-Le" ], [ wait => 0.02 ], [ send => "ngth: 4\r\n\r\nwe" ], [ wait => 0.02 ],
    [ send => 'll' ], 'close',
];

sub ms { my ($seconds) = @_; return int(1000 * $seconds * time_scale() + 0.5) . 'ms' }

# A parameter list for health_check: quick checks, with what is said instead. check('type=tcp', 'fails=1').
sub check {
    my %parameters = (type => 'http', interval => ms(0.1), timeout => ms(0.5), fails => 2, passes => 2);
    my @others;
    for my $parameter (@_) {
        if ($parameter =~ /^(\w+)=(.*)$/s) { $parameters{$1} = $2 }
        else                               { push @others, $parameter }
    }
    return join ' ', (map { "$_=$parameters{$_}" } sort keys %parameters), map { /[\s;{}]/ ? qq("$_") : $_ } @others;
}

# A node with these registries, NAME => [parameters of health_check, or undef for none], each with an upstream of its
# name, an API at /NAME/ and requests at /to/NAME. More of each by name => { check, block, upstream }. Options as for
# RegistryTest->nginx.
sub checked {
    my ($registries, %opt) = @_;
    my ($http, $server) = (delete $opt{http} || '', delete $opt{server} || '');
    for my $name (sort keys %$registries) {
        my $how = $registries->{$name};
        $how = { check => $how } unless ref $how eq 'HASH';
        my $check = $how->{check} ? 'health_check ' . check(@{ $how->{check} }) . ';' : '';
        my $block = $how->{block} || 'heartbeat_ttl 0;';
        my $inside = $how->{upstream} || '';
        my $size = $how->{size} || '256k';
        $http .= "registry $name $size { $block $check }\nupstream $name { registry $name; $inside }\n";
        $server .= "location /$name/ { registry_api $name; }\nlocation /to/$name { proxy_pass http://$name/; }\n";
    }
    return RegistryTest->nginx(workers => 2, http => $http, server => "$server location = /here { return 200 here; }", %opt);
}

# Servers are backends, or addresses.
sub address { my ($server) = @_; return ref $server ? $server->address : $server }
sub call {
    my ($registry, $endpoint, $server, %more) = @_;
    my ($host, $port) = address($server) =~ /^(.*):(\d+)$/;
    return $node->post("/$registry/$endpoint", body => form({ host => $host, port => $port, %more }));
}

# As status has it.
sub server {
    my ($registry, $server) = @_;
    local $node->{api} = "/$registry/";
    return servers($node, $registry)->{ address($server) };
}
sub state { my $server = server(@_); return $server ? $server->{state} : 'unknown' }
sub health { return server(@_)->{health} }

# Two kinds of waiting, one test each: for a state, and for a number of checks that have ended. The second returns
# what status then says of them.
sub becomes {
    my ($registry, $server, $state, $name, $timeout) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $is;
    return ok(wait_until(sub { ($is = state($registry, $server)) eq $state }, $timeout), $name)
        || diag(address($server) . " is $is, not $state");
}
sub after_checks {
    my ($registry, $server, $count, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $health;
    ok(wait_until(sub { $health = health($registry, $server); $health && $health->{checks} >= $count }),
        $name || "$count checks have ended");
    return $health;
}

# Who answers a number of requests: "a b" when both do.
sub answers {
    my ($registry, $count) = @_;
    my %by = map { ($_->{headers}{'x-backend'} || $_->{status}) => 1 } map { $node->get("/to/$registry") } 1 .. $count || 6;
    return join ' ', sort keys %by;
}

# The log's lines about a server's health, from where on: "unhealthy: status 503, 3" for 3 checks that failed, or
# "healthy".
sub said {
    my ($registry, $server, $from) = @_;
    my $addr = address($server);
    return map {
        /\[warn\] .*registry "$registry": server \Q$addr\E unhealthy in namespace "[^"]+": (.+?)[,( ]+(\d+) checks? failed\)?$/ ? "unhealthy: $1, $2"
            : /\[notice\] .*registry "$registry": server \Q$addr\E healthy in namespace "[^"]+"/ ? 'healthy' : $_
    } $node->grep_log(qr/registry "$registry": server \Q$addr\E (?:un)?healthy/, $from);
}

# How the workers fare

# Descriptors that a process has open.
sub descriptors { my ($pid) = @_; return scalar(() = glob "/proc/$pid/fd/*") }

# Seconds of processor time that a process has used.
sub used { my ($pid) = @_; my @stat = split ' ', slurp("/proc/$pid/stat") =~ s/.*\) //sr; return ($stat[11] + $stat[12]) / 100 }

# Asks nginx for something for so many seconds, on a new connection each time so that all workers take part; returns
# the slowest answer's time, that below which 95 of 100 were, and how many there were. Dies when one is not 200.
sub slowest {
    my ($seconds, $path) = @_;
    my ($until, @times) = time + $seconds;
    while (time < $until) {
        my $response = $node->get($path || '/here');
        die "no answer: $response->{status} " . ($response->{error} || '') . "\n" if $response->{status} != 200;
        push @times, $response->{time};
        sleep 0.003;
    }
    @times = sort { $a <=> $b } @times;
    return ($times[-1], $times[ $#times * 0.95 ], scalar @times);
}

1;
