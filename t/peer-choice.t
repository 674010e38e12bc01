# Which server a request gets: least_conn and round_robin, weights, backups, max_conns.
#
# A request with ?hang=1 stays in flight until its client closes the connection.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

# Two upstreams on each namespace, of which a request names one: /lc/NAMESPACE goes by
# least_conn, /rr/NAMESPACE by round_robin. One worker, so that order means something.
my $node = RegistryTest->nginx(
    workers => 1,
    http => q{
        registry main 1m { }
        upstream lc { registry main namespace=$ns; }
        upstream rr { registry main namespace=$ns; registry_balance round_robin; }
        map $uri $ns { "~^/../(?<name>[^/]+)" $name; }
    },
    server => q{
        location /upstream/ { registry_api main; }
        location /lc/       { proxy_pass http://lc; }
        location /rr/       { proxy_pass http://rr; }
    },
);
my %backend = map { $_ => RegistryTest->backend(name => $_) } qw(a b c);
my %name = map { $backend{$_}->address => $_ } keys %backend;

sub change {
    my ($endpoint, $ns, $name, %more) = @_;
    my $r = api($node, $endpoint, { ns => $ns, host => $backend{$name}->host, port => $backend{$name}->port, %more });
    is($r->{status}, 200, "$endpoint $name") or diag($r->{body});
    return;
}

# A new namespace with servers: (name => {parameters}, ...).
my $namespaces = 0;
sub namespace {
    my @servers = @_;
    my $ns = 'ns' . ++$namespaces;
    while (my ($name, $parameters) = splice @servers, 0, 2) {
        change(add => $ns, $name, %$parameters);
    }
    return $ns;
}

# Who answered so many requests, one after the other.
sub answers {
    my ($path, $count) = @_;
    return map { my $r = $node->get($path); $r->{headers}{'x-backend'} || $r->{status} } 1 .. $count;
}

# How often each of a list is in it: "a=2 b=1".
sub tally {
    my %n;
    $n{$_}++ for @_;
    return join ' ', map { "$_=$n{$_}" } sort keys %n;
}

sub longest_run {
    my ($of, @list) = @_;
    my ($longest, $run) = (0, 0);
    for (@list) {
        $run = $_ eq $of ? $run + 1 : 0;
        $longest = $run if $run > $longest;
    }
    return $longest;
}

# What is in flight: { a => n, ... } and "a=n b=n c=n".
sub flights {
    my ($ns) = @_;
    my $servers = servers($node, $ns);
    return { map { $name{$_} => $servers->{$_}{connections} } keys %$servers };
}
sub in_flight { my $n = flights(@_); return join ' ', map { "$_=$n->{$_}" } sort keys %$n }

# Puts a request in flight; returns its client and the server that it went to.
sub hold {
    my ($path) = @_;
    my ($ns) = $path =~ m{^/../(\w+)};
    my $before = flights($ns);
    my $client = $node->client;
    $client->send("GET $path?hang=1 HTTP/1.1\r\nHost: x\r\n\r\n");
    my ($to, $more);
    wait_until(sub {
        my $now = flights($ns);
        ($to, $more) = grep { $now->{$_} > $before->{$_} } keys %$now;
        return $to;
    });
    die "a request counted on $to and $more\n" if $more;
    return ($client, $to);
}

sub release {
    my ($ns, @clients) = @_;
    my $expected = connections($node, $ns) - @clients;
    $_->close for @clients;
    return wait_until(sub { connections($node, $ns) <= $expected }) && connections($node, $ns) == $expected;
}

subtest 'least_conn: the server with the fewest requests in flight is next' => sub {
    my $ns = namespace(a => {}, b => {}, c => {});
    my @held = map { [ hold("/lc/$ns") ] } 1 .. 3;
    is(in_flight($ns), 'a=1 b=1 c=1', 'three requests go to three servers');
    push @held, map { [ hold("/lc/$ns") ] } 1 .. 3;
    is(in_flight($ns), 'a=2 b=2 c=2', 'three more as well');

    ok(release($ns, map { $_->[0] } grep { $_->[1] eq 'b' } @held), 'those on b end');
    is(in_flight($ns), 'a=2 b=0 c=2', 'and are no longer counted');
    is(tally(answers("/lc/$ns", 6)), 'b=6', 'b gets all that is short');
    my @on_b = map { [ hold("/lc/$ns") ] } 1 .. 2;
    is(in_flight($ns), 'a=2 b=2 c=2', 'and what stays, until it has as many as the others');

    ok(release($ns, map({ $_->[0] } @on_b), map { $_->[0] } grep { $_->[1] ne 'b' } @held), 'all end');
    is(in_flight($ns), 'a=0 b=0 c=0', 'every count is 0');
};

subtest 'least_conn: in flight counts for its weight' => sub {
    my %weight = (a => 4, b => 2, c => 1);
    my $ns = namespace(map { $_ => { weight => $weight{$_} } } sort keys %weight);
    my (@clients, @wrong);
    for (1 .. 14) {
        my $before = flights($ns);
        my ($least) = sort { $a <=> $b } map { $before->{$_} / $weight{$_} } keys %weight;
        my ($client, $to) = hold("/lc/$ns");
        push @wrong, "$to of " . join ' ', %$before if $before->{$to} / $weight{$to} > $least;
        push @clients, $client;
    }
    is_deeply(\@wrong, [], 'each request goes to a server with the least connections/weight');
    is(in_flight($ns), 'a=8 b=4 c=2', 'so all are in flight in the ratio of the weights');
    ok(release($ns, @clients), 'all end');
};

subtest 'least_conn: ties go round, by weight' => sub {
    my $ns = namespace(a => {}, b => {}, c => {});
    my @got = answers("/lc/$ns", 12);
    is(tally(splice @got, 0, 3), 'a=1 b=1 c=1', 'equal servers without load: each once in a round') for 1 .. 4;

    $ns = namespace(a => { weight => 5 }, b => {}, c => {});
    @got = answers("/lc/$ns", 21);
    is(tally(splice @got, 0, 7), 'a=5 b=1 c=1', 'by weight') for 1 .. 3;

    # One request on each: the loads are equal again, and not 0.
    $ns = namespace(a => {}, b => {}, c => {});
    my @clients = map { (hold("/lc/$ns"))[0] } 1 .. 3;
    @got = answers("/lc/$ns", 9);
    is(tally(splice @got, 0, 3), 'a=1 b=1 c=1', 'also with requests in flight') for 1 .. 3;
    ok(release($ns, @clients), 'all end');
};

subtest 'round_robin: exact shares in each round, evenly spread' => sub {
    for my $weights ([ 1, 1, 1 ], [ 3, 2, 1 ], [ 5, 1, 1 ], [ 7, 3, 2 ]) {
        my %weight = (a => $weights->[0], b => $weights->[1], c => $weights->[2]);
        my $ns = namespace(map { $_ => { weight => $weight{$_} } } sort keys %weight);
        my $round = 0;
        $round += $_ for values %weight;
        my @got = answers("/rr/$ns", 4 * $round);
        my $expected = join ' ', map { "$_=$weight{$_}" } sort keys %weight;
        is(tally(@got[ $_ * $round .. ($_ + 1) * $round - 1 ]), $expected, "@$weights: round " . ($_ + 1)) for 0 .. 3;
        cmp_ok(longest_run('a', @got), '<=', $weight{a} == 1 ? 1 : $weight{a} - 1, "@$weights: a never has its share in one go");
        cmp_ok(longest_run($_, @got), '==', 1, "@$weights: $_ is never twice in a row") for $weight{b} == 1 ? 'b' : (), 'c';
    }
};

subtest 'round_robin: what is in flight does not matter' => sub {
    my $ns = namespace(a => {}, b => {}, c => {});
    my @clients = map { (hold("/rr/$ns"))[0] } 1 .. 4;
    my $held = flights($ns);
    is(join(' ', sort { $a <=> $b } values %$held), '1 1 2', 'requests in flight, unevenly');
    is(tally(answers("/rr/$ns", 9)), 'a=3 b=3 c=3', 'the next ones are shared evenly');
    ok(release($ns, @clients), 'all end');
};

subtest 'two upstreams with different methods share the counts of one namespace' => sub {
    my $ns = namespace(a => {}, b => {}, c => {});
    my @clients = map { [ hold("/rr/$ns") ] } 1 .. 2;
    my ($idle) = grep { flights($ns)->{$_} == 0 } qw(a b c);
    is(tally(answers("/lc/$ns", 6)), "$idle=6", 'least_conn sees what round_robin has in flight');
    my ($client, $to) = hold("/lc/$ns");
    is($to, $idle, 'and fills it up');
    is(in_flight($ns), 'a=1 b=1 c=1', 'both count into the same numbers');
    my $sum = 0;
    $sum += $_->{requests} for values %{ servers($node, $ns) };
    is($sum, 9, 'and the numbers of requests');
    ok(release($ns, $client, map { $_->[0] } @clients), 'all end');
};

subtest 'round_robin keeps its shares whatever another upstream does' => sub {
    my $ns = namespace(a => {}, b => {}, c => {});
    my @clients = map { [ hold("/lc/$ns") ] } 1 .. 2;
    my ($idle) = grep { flights($ns)->{$_} == 0 } qw(a b c);
    my (@by_rr, @by_lc);
    for (1 .. 9) {
        push @by_lc, answers("/lc/$ns", 2);
        push @by_rr, answers("/rr/$ns", 1);
    }
    is(tally(@by_lc), "$idle=18", 'least_conn prefers the idle server');
    is(tally(@by_rr), 'a=3 b=3 c=3', 'round_robin, asked in between, goes round');
    ok(release($ns, map { $_->[0] } @clients), 'all end');
};

subtest 'who comes late or comes back is not owed what it missed' => sub {
    for my $method (qw(lc rr)) {
        my $ns = namespace(a => {}, b => {});
        answers("/$method/$ns", 30);
        change(add => $ns, 'c');
        my @got = answers("/$method/$ns", 9);
        is(tally(@got), 'a=3 b=3 c=3', "$method: a server that joins has its share, and no more");
        cmp_ok(longest_run('c', @got), '<=', 2, "$method: not all of it at once");

        change(toggle => $ns, 'a', action => 'disable');
        is(tally(answers("/$method/$ns", 30)), 'b=15 c=15', "$method: without a");
        change(toggle => $ns, 'a', action => 'enable');
        @got = answers("/$method/$ns", 9);
        like(tally(@got), qr/^a=[34] b=[234] c=[234]$/, "$method: a server that is back has its share");
        cmp_ok(longest_run('a', @got), '<=', 2, "$method: not all of it at once");
    }
};

subtest 'a change of weight counts from the next request on' => sub {
    for my $method (qw(lc rr)) {
        my $ns = namespace(a => {}, b => {});
        is(tally(answers("/$method/$ns", 10)), 'a=5 b=5', "$method: equal");
        change(weight => $ns, 'a', weight => 4);
        my ($a) = tally(answers("/$method/$ns", 20)) =~ /a=(\d+)/;
        ok($a >= 15 && $a <= 17, "$method: a has four fifths of 20") or diag($a);
        change(weight => $ns, 'a', weight => 0);
        is(tally(answers("/$method/$ns", 6)), 'b=6', "$method: with weight 0 none");
        change(weight => $ns, 'a', weight => 1);
        like(tally(answers("/$method/$ns", 10)), qr/^a=[456] b=[456]$/, "$method: and its share again");
    }
};

subtest 'max_conns is a limit' => sub {
    for my $method (qw(lc rr)) {
        my $ns = namespace(a => { max_conns => 2 }, b => { max_conns => 1 }, c => { max_conns => 0 });
        my @held = map { [ hold("/$method/$ns") ] } 1 .. 8;
        is(in_flight($ns), 'a=2 b=1 c=5', "$method: what a and b may not have goes to c, which has no limit");
        change(toggle => $ns, 'c', action => 'disable');
        is(tally(answers("/$method/$ns", 2)), '502=2', "$method: without c there is no room");
        my ($on_b) = map { $_->[0] } grep { $_->[1] eq 'b' } @held;
        ok(release($ns, $on_b), "$method: the request on b ends");
        is(tally(answers("/$method/$ns", 3)), 'b=3', "$method: b has room again");

        my @more = hold("/$method/$ns");
        change(add => $ns, 'a', max_conns => 3);
        is(tally(answers("/$method/$ns", 3)), 'a=3', "$method: a higher limit counts at once");
        change(add => $ns, 'a', max_conns => 1);
        is(tally(answers("/$method/$ns", 2)), '502=2', "$method: a lower one as well");
        is(in_flight($ns), 'a=2 b=1 c=5', "$method: but takes nothing from those in flight");
        my @rest = grep { $_->[1] ne 'b' } @held;
        my ($on_a) = map { $_->[0] } grep { $_->[1] eq 'a' } @rest;
        ok(release($ns, $on_a), "$method: one of two ends");
        is(tally(answers("/$method/$ns", 2)), '502=2', "$method: the other still fills it");
        ok(release($ns, $more[0], grep { $_ != $on_a } map { $_->[0] } @rest), "$method: all end");
    }
};

$node->log_is_clean;
done_testing;
