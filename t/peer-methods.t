# registry_balance random, random two, ip_hash, hash and hash consistent, beside the same methods of
# stock nginx: shares, weights, which keys move when a server leaves, fails and returns, retries,
# workers and nodes that agree, reloads.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $SERVERS = 20;
my $KEYS    = 3000;
my $GONE    = 7;

# The servers answer with their number. Server blocks of a node of their own.
my $servers = RegistryTest->nginx(
    workers => 1, worker_connections => 1024,
    http => join '', map { "server { listen 127.0.1.$_:%%PORT_s%%; keepalive_requests 100000; location / { return 200 $_; } location /bad { return " . ($_ == 3 ? 503 : 200) . " $_; } }\n" } 1 .. $SERVERS,
);
my $port = $servers->port('s');

my %METHODS = (
    random => 'random', two => 'random two', ip => 'ip_hash', hash => 'hash $arg_k', ring => 'hash $arg_k consistent',
);
my $lines = sub { join '', map { "server 127.0.1.$_:$port" . ($_[1] ? " weight=" . $_[1]->($_) : '') . ';' } grep { $_ != ($_[0] || 0) } 1 .. $SERVERS };
my $http = "registry main 1m { heartbeat_ttl 0; }\n"
    . "proxy_http_version 1.1; proxy_set_header Connection ''; proxy_next_upstream error http_503;\n";
my $locations = 'location /upstream/ { registry_api main; }';
for my $name (sort keys %METHODS) {
    my $method = $METHODS{$name};
    $http .= "upstream ours_$name { registry main namespace=all; registry_balance $method; keepalive 64; }\n"
        . "upstream stock_$name { $method; " . $lines->() . " keepalive 64; }\n"
        . "upstream without_$name { $method; " . $lines->($GONE) . " keepalive 64; }\n"
        . "upstream weighted_$name { registry main namespace=weighted; registry_balance $method; keepalive 64; }\n"
        . "upstream bad_$name { registry main namespace=bad; registry_balance $method; keepalive 64; "
        . join('', map { "server 127.0.1.$_:$port max_fails=0;" } 1 .. 5) . " }\n";
    $locations .= "location /${_}_$name { proxy_pass http://${_}_$name/; }" for qw(ours stock without weighted);
    $locations .= "location /bad_$name { proxy_pass http://bad_$name/bad; add_header X-Tried \$upstream_addr always; }";
}
my %node = (http => $http, server => "keepalive_requests 100000; add_header X-Worker \$pid; $locations", worker_connections => 1024);
my $node  = RegistryTest->nginx(%node, workers => 2);
my $other = RegistryTest->nginx(%node, workers => 1);

sub change {
    my ($on, $endpoint, $ns, $n, %more) = @_;
    my $r = api($on, $endpoint, { ns => $ns, host => "127.0.1.$n", port => $port, %more });
    is($r->{status}, 200, "$endpoint $n") or diag($r->{body});
    return;
}
subtest 'servers register, on another node the other way round' => sub {
    change($node, 'add', 'all', $_, max_conns => 0) for 1 .. $SERVERS;
    change($other, 'add', 'all', $_, max_conns => 0) for reverse 1 .. $SERVERS;
};

# Who answers each of so many keys.
sub places {
    my ($on, $name, $keys) = @_;
    my $client = $on->client;
    my @places = map { my $r = $client->get("/$name?k=key$_"); $r->{body} || $r->{status} } 1 .. $keys || $KEYS;
    $client->close;
    return \@places;
}
sub counts { my %n = map { $_ => 0 } 1 .. $SERVERS; $n{$_}++ for @{ $_[0] }; return \%n }
# How far the shares are from equal ones, in the mean.
sub deviation {
    my @n = values %{ $_[0] };
    my ($sum, $squares) = (0, 0);
    $sum += $_ for @n;
    $squares += ($_ * @n / $sum - 1)**2 for @n;
    return sqrt($squares / @n);
}
sub moved { my ($from, $to) = @_; return grep { $from->[$_] ne $to->[$_] } 0 .. $#$from }

my %at;
for my $name (qw(random two hash ring)) {
    $at{$name} = places($node, "ours_$name");
    my ($ours, $stock) = map { deviation(counts($_)) } $at{$name}, places($node, "stock_$name");
    cmp_ok($ours, '<=', 1.5 * $stock + 0.02, sprintf "$METHODS{$name}: shares are as even as stock's, %.3f and %.3f", $ours, $stock);
}

for my $name (qw(hash ring)) {
    is(scalar moved($at{$name}, places($node, "ours_$name")), 0, "$METHODS{$name}: a key stays where it is");
    is(scalar moved($at{$name}, places($other, "ours_$name")), 0, "$METHODS{$name}: another node says the same");
}

subtest 'a server fails, is switched off, and returns' => sub {
    for my $name (qw(hash ring)) {
        change($node, 'toggle', 'all', $GONE, action => 'disable');
        my $without = places($node, "ours_$name");
        my @moved = moved($at{$name}, $without);
        ok(@moved > $KEYS / $SERVERS / 2, "$METHODS{$name}: its keys move") or diag(scalar @moved);
        is(scalar grep({ $at{$name}[$_] != $GONE } @moved), 0, "$METHODS{$name}: and no others");
        my %to = map { $without->[$_] => 1 } @moved;
        cmp_ok(scalar keys %to, '>', $SERVERS / 2, "$METHODS{$name}: they go to many");
        change($node, 'toggle', 'all', $GONE, action => 'enable');
        is(scalar moved($at{$name}, places($node, "ours_$name")), 0, "$METHODS{$name}: and come back");
    }
};

subtest 'a server is removed and registers again' => sub {
    change($node, 'remove', 'all', $GONE);
    my $ring = places($node, 'ours_ring');
    my @ours = moved($at{ring}, $ring);
    my ($before, $after) = map { places($node, $_) } qw(stock_ring without_ring);
    my @stock = moved($before, $after);
    is(scalar grep({ $before->[$_] != $GONE } @stock), 0, 'stock consistent: its keys alone move');
    is(scalar grep({ $at{ring}[$_] != $GONE } @ours), 0, 'so it is here');
    cmp_ok(@ours, '<=', 1.6 * @stock, 'and they are not many more: ' . @ours . ' and ' . @stock);
    my ($hash, $stock) = (scalar moved($at{hash}, places($node, 'ours_hash')), scalar moved(map { places($node, $_) } qw(stock_hash without_hash)));
    cmp_ok($hash, '<=', $stock, "hash alone: many move, not more than stock's: $hash and $stock");
    change($node, 'add', 'all', $GONE, max_conns => 0);
    is(scalar moved($at{$_}, places($node, "ours_$_")), 0, "$METHODS{$_}: all come back") for qw(hash ring);
};

subtest 'by weight' => sub {
    my %weight = map { $_ => $_ } 1 .. 5;
    change($node, 'add', 'weighted', $_, weight => $weight{$_}, max_conns => 0) for sort keys %weight;
    for my $name (qw(random hash ring)) {
        my $n = counts(places($node, "weighted_$name"));
        for my $server (sort keys %weight) {
            my $share = $weight{$server} / 15;
            my $deviation = sqrt($KEYS * $share * (1 - $share));
            cmp_ok(abs($n->{$server} - $KEYS * $share), '<', 5 * $deviation, "$METHODS{$name}: $server has $n->{$server}");
        }
    }
};

subtest 'retries go to others, and never to the same' => sub {
    for my $name (sort keys %METHODS) {
        my $client = $node->client;
        my ($retried, @wrong) = (0);
        for my $key (1 .. 200) {
            my $r = $client->get("/bad_$name?k=key$key");
            my @tried = split /, /, $r->{headers}{'x-tried'} || '';
            my %tried = map { $_ => 1 } @tried;
            $retried++ if @tried > 1;
            push @wrong, "$r->{status} @tried" if $r->{status} != 200 || keys %tried != @tried || @tried > 2;
        }
        is_deeply(\@wrong, [], "$METHODS{$name}: each is answered by the first or the second");
        cmp_ok($retried, '>', 0, "$METHODS{$name}: some needed the second") if $name ne 'ip';
    }
};

subtest 'ip_hash' => sub {
    my $of = sub { my ($name, $ip) = @_; return $node->get("/${name}_ip", from => $ip)->{body} };
    my %networks;
    for my $i (0 .. 99) {
        my @answers = map { $of->('ours', "127.9.$i.$_") } 1, 77;
        push @{ $networks{ $answers[0] eq $answers[1] ? 'same' : 'other' } }, $answers[0];
    }
    is(scalar @{ $networks{same} }, 100, 'clients with the same three octets have one server');
    my $servers = keys %{ { map { $_ => 1 } @{ $networks{same} } } };
    my $stock = keys %{ { map { $of->('stock', "127.9.$_.1") => 1 } 0 .. 99 } };
    cmp_ok($servers, '>=', $stock - 4, "networks are spread as in stock: over $servers, there over $stock");
};

subtest 'a key that is empty' => sub {
    for my $name (qw(ours_hash ours_ring stock_hash stock_ring)) {
        # One worker: stock's turns are each worker's own.
        my $client = $other->client;
        my @got = map { $client->get("/$name")->{body} } 1 .. $SERVERS;
        is(scalar keys %{ { map { $_ => 1 } @got } }, $SERVERS, "$name: goes round");
    }
};

subtest 'workers agree, before and after a reload' => sub {
    my %workers;
    my $ask = sub {
        my ($name, $keys) = @_;
        my %wrong;
        for my $key (1 .. $keys) {
            my $r = $node->get("/ours_$name?k=key$key");
            $workers{ $r->{headers}{'x-worker'} }++;
            $wrong{$key}++ if $r->{body} ne $at{$name}[ $key - 1 ];
        }
        return \%wrong;
    };
    is_deeply($ask->($_, 200), {}, "$METHODS{$_}: on new connections, by whatever worker") for qw(hash ring);
    $node->reload;
    is_deeply($ask->($_, 200), {}, "$METHODS{$_}: after a reload") for qw(hash ring);
    cmp_ok(scalar keys %workers, '>=', 3, 'several workers were asked');
};

subtest 'few of many' => sub {
    change($node, 'toggle', 'all', $_, action => 'disable') for 1 .. $SERVERS - 2;
    for my $name (qw(random two hash ring)) {
        my $n = counts(places($node, "ours_$name", 300));
        ok($n->{ $SERVERS - 1 } > 90 && $n->{$SERVERS} > 90, "$METHODS{$name}: two share all") or diag(explain($n));
    }
};

subtest 'nobody' => sub {
    change($node, 'toggle', 'all', $_, action => 'disable') for $SERVERS - 1, $SERVERS;
    is($node->get("/ours_$_?k=1")->{status}, 502, "$METHODS{$_}: 502") for sort keys %METHODS;
};

ok($node->grep_log(qr/no eligible server in namespace "all": 20 disabled/), 'and the log says why');
done_testing;
