# slow_start: a server that is new or has come back grows to its weight.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
require "$FindBin::Bin/life.pl";

my $SLOW = 3 * time_scale();
my $slow = 1000 * $SLOW . 'ms';
my %REGISTRIES = (
    main  => "heartbeat_ttl 1h; slow_start $slow;",
    long  => "heartbeat_ttl 1h; slow_start 1h; state_file long.json;",
    plain => 'heartbeat_ttl 1h;',
    short => "heartbeat_ttl ${\ (1000 * time_scale())}ms; cleanup_interval 50ms; slow_start 1h;",
);
our $node = RegistryTest->nginx(
    workers => 2,
    http => join('', map {
        "registry $_ 256k { $REGISTRIES{$_} } upstream $_ { registry $_; }\n"
            . "upstream turns_$_ { registry $_ namespace=$_; registry_balance round_robin; }\n"
    } sort keys %REGISTRIES),
    server => join('', map {
        "location /$_/ { registry_api $_; } location /to/$_ { proxy_pass http://$_/; proxy_next_upstream error http_503; }\n"
            . "location /turns/$_ { proxy_pass http://turns_$_/; proxy_next_upstream error http_503; }\n"
    } sort keys %REGISTRIES),
);
my ($a, $b, $c) = map { RegistryTest->backend(name => $_) } qw(a b c);

# How many of forty requests go to a server.
sub share {
    my ($registry, $name, $how) = @_;
    my $path = '/' . ($how || 'to') . "/$registry";
    return scalar grep { ($node->get($path)->{headers}{'x-backend'} || '') eq $name } 1 .. 40;
}

for my $how (qw(to turns)) {
    my $method = $how eq 'to' ? 'least_conn' : 'round_robin';
    subtest "a new server grows to its share, $method" => sub {
        call('main', add => $a, slow_start => 0);
        is(share('main', 'a', $how), 40, 'alone');
        my $start = time;
        call('main', add => $b);
        my $first = share('main', 'b', $how);
        cmp_ok($first, '<=', 10, "next to nothing ($first)") if time - $start < $SLOW / 4;
        sleep $SLOW / 2 - (time - $start) if time - $start < $SLOW / 2;
        my $second = share('main', 'b', $how);
        if (time - $start < 0.8 * $SLOW) {
            cmp_ok($second, '>=', 9, "then more ($second)");
            cmp_ok($second, '<=', 19, 'but less than its half');
        }
        ok(wait_until(sub { time - $start > $SLOW }, 2 * $SLOW), 'when the time is over');
        my $last = share('main', 'b', $how);
        ok($last >= 19 && $last <= 21, "its half ($last)");
        call('main', remove => $_) for $a, $b;
    };
}

subtest 'who begins' => sub {
    call('long', add => $a, slow_start => 0);
    call('long', add => $b, slow_start => 0);
    cmp_ok(share('long', 'b', 'turns'), '>=', 19, 'not one that says 0');
    call('long', add => $b, slow_start => '1h');
    call('long', refresh => $b);
    cmp_ok(share('long', 'b', 'turns'), '>=', 19, 'nor one that is there already');
    call('long', toggle => $b, action => 'disable');
    call('long', toggle => $b, action => 'enable');
    cmp_ok(share('long', 'b', 'turns'), '<=', 2, 'one that is switched on');
    call('long', add => $b, slow_start => 0);
    cmp_ok(share('long', 'b', 'turns'), '>=', 19, 'until it says otherwise');

    call('long', add => $b, slow_start => '1h');
    call('long', drain => $b);
    call('long', toggle => $b, action => 'enable');
    cmp_ok(share('long', 'b', 'turns'), '<=', 2, 'one that drained');

    ok($node->reload, 'a reload');
    cmp_ok(share('long', 'b', 'turns'), '<=', 2, 'does not end it');
    ok($node->quit, 'nginx ends');
    like(slurp($node->dir . '/long.json'), qr/"slow_start_ms":3600000/, 'the state file has the time');
    $node->start;
    cmp_ok(share('long', 'b', 'turns'), '>=', 19, 'a restart begins nothing');
    call('long', toggle => $b, action => 'disable');
    call('long', toggle => $b, action => 'enable');
    cmp_ok(share('long', 'b', 'turns'), '<=', 2, 'but the time is known');
};

subtest 'a server that failed' => sub {
    call('plain', add => $a, max_fails => 0);
    call('plain', add => $b, slow_start => '1h', fail_timeout => '300ms');
    call('plain', add => $b, slow_start => 0);
    call('plain', add => $b, slow_start => '1h');
    cmp_ok(share('plain', 'b', 'turns'), '>=', 19, 'has its half');
    $b->set(status => 503);
    is(share('plain', 'b', 'turns'), 0, 'fails');
    is(server('plain', $b)->{state}, 'unhealthy', 'and is out');
    $b->clear;
    ok(wait_until(sub { $node->get('/turns/plain')->{headers}{'x-backend'} eq 'b' }), 'is tried again');
    cmp_ok(share('plain', 'b', 'turns'), '<=', 3, 'and begins with little');
};

subtest 'a server that was silent' => sub {
    call('short', add => $_, slow_start => 0) for $a, $b;
    call('short', add => $b, slow_start => '1h');
    ok(wait_until(sub { call('short', refresh => $a); !server('short', $b)->{enabled} }), 'is switched off');
    call('short', refresh => $_) for $a, $b;
    my $share = grep { call('short', refresh => $_ % 2 ? $a : $b); $node->get('/turns/short')->{headers}{'x-backend'} eq 'b' } 1 .. 40;
    cmp_ok($share, '<=', 2, 'and begins with little');
};

subtest 'an upstream says another time for its namespace' => sub {
    my @servers = map { my $name = $_; map { RegistryTest->backend(name => "$name$_") } 1 .. 2 } qw(s p);
    my %line = (s => 's', p => 'p');
    my $node = RegistryTest->nginx(
        http => join('', "registry main 256k { heartbeat_ttl 1h; slow_start 1h; }\n",
            "upstream at_once { registry main; registry_balance round_robin; registry_slow_start 0; server 127.0.0.1:${\ $servers[0]->port}; }\n",
            "upstream slow { registry main; registry_balance round_robin; }\n",
            "upstream same { registry main namespace=at_once; registry_slow_start 0; }\n"),
        server => join('', "location /upstream/ { registry_api main; }\n",
            map { "location /to/$_ { proxy_pass http://$_/; }\n" } qw(at_once slow)),
    );
    my $share = sub {
        my ($space, $name) = @_;
        return scalar grep { $node->get("/to/$space")->{headers}{'x-backend'} eq $name } 1 .. 40;
    };
    for my $space (qw(at_once slow)) {
        my ($first, $second) = $space eq 'at_once' ? @servers[0, 1] : @servers[2, 3];
        $node->post("/upstream/add", body => "ns=$space&port=" . $first->port . "&slow_start=0") if $space eq 'slow';
        $node->post("/upstream/add", body => "ns=$space&port=" . $second->port);
        my $n = $share->($space, $second->name);
        $space eq 'slow' ? cmp_ok($n, '<=', 2, "there the registry's applies") : cmp_ok($n, '>=', 19, 'here its own does');
    }
    my $text = $node->conf_text;
    my %bad = (
        'registry_slow_start 2h' => qr/invalid time "2h" in "registry_slow_start": write it as 30s, it may be 1h at most, or 0 for none in /,
        'registry_slow_start 5s' => qr/"registry_slow_start" of namespace "at_once" differs from the one in \S+:\d+: upstreams of one namespace must say the same, in /,
    );
    for my $bad (sort keys %bad) {
        my ($exit, $output) = $node->test_conf($text =~ s/registry_slow_start 0/$bad/r);
        like($output, $bad{$bad}, $bad);
    }
    $node->log_is_clean;
};

subtest 'what is refused' => sub {
    is(call('plain', add => $b, slow_start => $_)->{json}{message},
        'Parameter "slow_start" must be a time of at most 1h, written as 30s, 500ms or 1m 30s', "\"$_\"") for qw(slowly 2h -1s);
    for my $bad (qw(slowly 2h -1)) {
        my ($exit, $output) = $node->test_conf($node->conf_text =~ s/slow_start 1h;/slow_start $bad;/r);
        like($output, qr/\[emerg\].* invalid time "$bad" in "slow_start": write it as 30s, it may be 1h at most, or 0 for none in /, "slow_start $bad");
    }
};

$node->log_is_clean;
done_testing;
