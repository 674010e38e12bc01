# What changes about a server while requests are on it: they go on, and are given back to
# the server that they were taken from, or to nobody when it is gone.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my %backend = map { $_ => RegistryTest->backend(name => $_) } qw(a b);

sub http_conf {
    my (%lines) = @_;
    return 'registry main 256k { }' . join '', map {
        "upstream $_ { registry main; " . ($lines{$_} || '') . " }\n"
    } qw(app fixed adopted), grep { /^more/ } sort keys %lines;
}
sub line { my ($name, $more) = @_; return 'server ' . $backend{$name}->address . ' ' . ($more || '') . ';' }

my $server = q{
    location /upstream/ { registry_api main; }
    add_header X-Addr $upstream_addr always;
    location /app     { proxy_pass http://app; }
    location /fixed   { proxy_pass http://fixed; }
    location /adopted { proxy_pass http://adopted; }
};
my $node;

sub change {
    my ($endpoint, $ns, $name, %more) = @_;
    my $r = api($node, $endpoint, { ns => $ns, host => $backend{$name}->host, port => $backend{$name}->port, %more });
    is($r->{status}, 200, "$endpoint $name") or diag($r->{body});
    return $r->{json}{data};
}

# Requests that are on a server until they are released.
sub hold {
    my ($ns, $name, $count) = @_;
    my $before = $backend{$name}->stats->{active};
    my @clients = map {
        my $client = $node->client;
        $client->send("GET /$ns?hang=1 HTTP/1.1\r\nHost: x\r\n\r\n");
        $client;
    } 1 .. $count;
    ok(wait_until(sub { $backend{$name}->stats->{active} == $before + $count }), "$count requests on $name");
    return @clients;
}

# Ends them, and waits until nginx has noticed.
sub release {
    my ($name, @clients) = @_;
    my $rest = $backend{$name}->stats->{active} - @clients;
    $_->close for @clients;
    ok(wait_until(sub { $backend{$name}->stats->{active} == $rest }), scalar(@clients) . " requests on $name end");
    return;
}

# The counts: "a=1 b=0"; "none" without servers, "-" without the namespace.
sub counts {
    my ($ns) = @_;
    my $r = $node->get("/upstream/status?ns=$ns");
    return '-' if $r->{status} == 404;
    my %name = map { $backend{$_}->address => $_ } keys %backend;
    return join(' ', sort map { ($name{ $_->{addr} } || $_->{addr}) . "=$_->{connections}" } @{ $r->{json}{data} }) || 'none';
}

# Now, and when whatever is on its way has come.
sub counts_are {
    my ($ns, $expected, $what) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    wait_until(sub { counts($ns) eq $expected });
    return is(counts($ns), $expected, $what);
}

for my $workers (1, 4) {
    $node = RegistryTest->nginx(workers => $workers, http => http_conf(fixed => line('a')), server => $server);

    subtest "$workers workers: disabled, drained, of weight 0, changed, heard of" => sub {
        change(add => 'app', $_) for 'a';
        my @clients = hold('app', 'a', 4);
        counts_are('app', 'a=4', 'in flight');
        my @ways = ([ toggle => action => 'disable' ], [ toggle => action => 'enable' ], ['drain'],
            [ toggle => action => 'enable' ], [ weight => weight => 0 ], [ weight => weight => 3 ], ['refresh'],
            [ add => max_conns => 2 ], [ add => max_conns => 0 ]);
        for my $way (@ways) {
            my ($endpoint, @parameters) = @$way;
            my $data = change($endpoint, 'app', 'a', @parameters);
            is($data->{connections}, 4, 'drain tells how many there are') if $endpoint eq 'drain';
            is(counts('app'), 'a=4', "@$way: they go on");
        }
        is(api($node, reset => { ns => 'app' })->{status}, 200, 'reset');
        is(counts('app'), 'a=4', 'takes none of them away');
        change(drain => 'app', 'a');
        release('a', @clients[ 0, 1 ]);
        counts_are('app', 'a=2', 'a draining server comes to its end');
        release('a', @clients[ 2, 3 ]);
        counts_are('app', 'a=0', 'until nothing is left');
        change(remove => 'app', 'a');
    };

    subtest "$workers workers: removed" => sub {
        change(add => 'app', 'a');
        my @clients = hold('app', 'a', 3);
        change(remove => 'app', 'a');
        is(counts('app'), 'none', 'it is gone at once');
        is($backend{a}->stats->{active}, 3, 'but not the requests on it');
        release('a', @clients);
        is(counts('app'), 'none', 'there is nobody to give them back to');
    };

    subtest "$workers workers: removed, and then it answers, or fails" => sub {
        # A request to one of two, which is removed then.
        my $begin = sub {
            change(add => 'app', $_) for qw(a b);
            $backend{$_}->pause for qw(a b);
            my $client = $node->client;
            $client->send("GET /app HTTP/1.1\r\nHost: x\r\n\r\n");
            wait_until(sub { counts('app') =~ /1/ });
            my ($on, $off) = counts('app') eq 'a=1 b=0' ? qw(a b) : qw(b a);
            is(counts('app'), join(' ', sort "$on=1", "$off=0"), 'a request on one of two');
            change(remove => 'app', $on);
            $backend{$off}->resume;
            return ($client, $on, $off);
        };
        my ($client, $on, $off) = $begin->();
        $backend{$on}->resume;
        my $r = $client->response;
        is("$r->{headers}{'x-backend'} $r->{headers}{'x-addr'}", "$on " . $backend{$on}->address, 'it answers, and is named');
        is(counts('app'), "$off=0", 'the other has nothing of it');

        ($client, $on, $off) = $begin->();
        $backend{$on}->kill;
        $r = $client->response;
        is("$r->{headers}{'x-backend'} $r->{headers}{'x-addr'}", "$off " . join(', ', map { $backend{$_}->address } $on, $off),
            'it fails, and the other answers');
        is(counts('app'), "$off=0", 'nothing is left of either');
        is(servers($node, 'app')->{ $backend{$off}->address }{fails}, 0, 'the failure is not that of the other');
        $backend{$on}->start;

        ($client, $on, $off) = $begin->();
        change(remove => 'app', $off);
        $backend{$on}->kill;
        is($client->response->{status}, 502, 'without another there is nobody');
        like(($node->grep_log(qr/no eligible server/))[-1], qr/"app": it has no servers while/, 'as the log says');
        $backend{$on}->start;
    };

    subtest "$workers workers: removed and added again" => sub {
        change(add => 'app', 'a', max_conns => 2);
        my @old = hold('app', 'a', 2);
        is($node->get('/app')->{status}, 502, 'at its limit');
        change(remove => 'app', 'a');
        change(add => 'app', 'a', max_conns => 2);
        is(counts('app'), 'a=0', 'the new one begins with nothing');
        my @new = hold('app', 'a', 2);
        counts_are('app', 'a=2', 'and counts its own');
        release('a', @old);
        is(counts('app'), 'a=2', 'what the old one had is not taken from it');
        is($node->get('/app')->{status}, 502, 'nor room made');
        release('a', @new);
        counts_are('app', 'a=0', 'its own is');
        is($node->get('/app')->{status}, 200, 'there is room again');
        change(remove => 'app', 'a');
    };

    subtest "$workers workers: removed, and another in its place" => sub {
        change(add => 'app', 'a');
        my @old = hold('app', 'a', 2);
        change(remove => 'app', 'a');
        change(add => 'app', 'b');
        my @new = hold('app', 'b', 1);
        counts_are('app', 'b=1', 'the other counts its own');
        $_->close for @old;
        wait_until(sub { $backend{a}->stats->{active} == 0 });
        counts_are('app', 'b=1', 'and gives none away');
        release('b', @new);
        counts_are('app', 'b=0', 'nothing at the end');
        change(remove => 'app', 'b');
    };

    subtest "$workers workers: a server line that a reload takes away, and another brings back" => sub {
        my @old = hold('fixed', 'a', 3);
        counts_are('fixed', 'a=3', 'in flight');
        $node->set_conf(http => http_conf(fixed => line('b')));
        ok($node->reload(wait => 'new'), 'b instead of a');
        counts_are('fixed', 'b=0', 'a is gone');
        is($node->get('/fixed')->{headers}{'x-backend'}, 'b', 'new requests go to b');
        release('a', $old[0]);
        my @new = hold('fixed', 'b', 1);
        counts_are('fixed', 'b=1', 'a count of its own');

        $node->set_conf(http => http_conf(fixed => line('a') . line('b')));
        ok($node->reload(wait => 'new'), 'both');
        counts_are('fixed', 'a=0 b=1', 'a begins with nothing, b goes on');
        my @newest = hold('fixed', 'a', 1);
        counts_are('fixed', 'a=1 b=1', 'a request on a');
        release('a', $old[1]);
        counts_are('fixed', 'a=1 b=1', 'one of the first ends, and is nobody\'s');
        release('a', @newest, $old[2]);
        release('b', @new);
        counts_are('fixed', 'a=0 b=0', 'nothing at the end');
        ok(wait_until(sub { !$node->old_workers }), 'the old workers go');
    };

    subtest "$workers workers: a server line that a reload changes" => sub {
        $node->set_conf(http => http_conf(fixed => line('a')));
        ok($node->reload, 'a alone');
        my @clients = hold('fixed', 'a', 3);
        for my $more ('max_conns=3', 'weight=5', 'down', 'backup', 'max_fails=0') {
            $node->set_conf(http => http_conf(fixed => line('a', $more)));
            ok($node->reload(wait => 'new'), $more);
            is(counts('fixed'), 'a=3', 'they go on');
            is($node->get('/fixed')->{status}, $more =~ /max_conns|down/ ? 502 : 200, 'and the change counts');
        }
        release('a', @clients);
        counts_are('fixed', 'a=0', 'nothing at the end');
    };

    subtest "$workers workers: a registered server that becomes a server line" => sub {
        change(add => 'adopted', 'a');
        my @clients = hold('adopted', 'a', 2);
        $node->set_conf(http => http_conf(adopted => line('a')));
        ok($node->reload(wait => 'new'), 'a line for it');
        counts_are('adopted', 'a=2', 'it is the same server');
        release('a', @clients);
        counts_are('adopted', 'a=0', 'nothing at the end');
    };

    ok(wait_until(sub { !$node->old_workers }), 'all old workers have gone');
    $node->log_is_clean;
}

done_testing;
