# What the DNS server says, and what becomes of a name then: changes, no such name, nonsense.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/names.pl";

our ($dns, $port, %backend);
backends(2 .. 5);
my $node = node(settings => 'heartbeat_ttl 1h; allow_servers 127.0.0.0/8;');

sub said { my ($pattern, $from) = @_; return scalar $node->grep_log($pattern, $from) }

subtest 'an answer that changes while requests run: none fails' => sub {
    $dns->set('app.test' => { a => [ '127.0.0.2', '127.0.0.3' ] });
    change($node, add => 'app.test');
    resolves_to($node, 'app.test', '2 3', 'two addresses');
    $_->set(delay => 0.02) for values %backend;
    my $load = load_start(url => 'http://127.0.0.1:' . $node->port . '/', conns => 16, procs => 2);
    my $before = server($node, '127.0.0.3')->{created_at};
    for my $set ([ 3, 4 ], [ 3, 4, 5 ], [ 3, 5 ], [ 2, 3 ]) {
        $dns->set('app.test' => { a => [ map { "127.0.0.$_" } @$set ] });
        resolves_to($node, 'app.test', "@$set", "then @$set");
    }
    my $done = load_stop($load);
    is_deeply($done->{status}, { 200 => $done->{requests} }, "all of $done->{requests} requests are answered")
        or diag(explain($done));
    is($done->{failed}, 0, 'and none is lost');
    cmp_ok($done->{backend}{"127.0.0.$_:$port"} || 0, '>', 0, "some by 127.0.0.$_") for 2 .. 5;
    is(server($node, '127.0.0.3')->{created_at}, $before, 'the one that was there all the time is the same');
    cmp_ok(server($node, '127.0.0.3')->{requests}, '>', 10, 'with what it counted');
    ok(wait_until(sub { !connections($node, 'app') }), 'in the end nothing is in flight');
    $_->clear for values %backend;
    change($node, remove => 'app.test');
    is(said(qr/server 127\.0\.0\.4:$port $_ in namespace "app", an address of app\.test:$port/), 1, "$_ is said once") for qw(added removed);
};

subtest 'asked again when the time of the answer is up, and not before' => sub {
    $dns->set('long.test' => { a => ['127.0.0.4'], ttl => 3600 });
    change($node, add => 'long.test');
    resolves_to($node, 'long.test', '4', 'a long time');
    $dns->set('long.test' => { a => ['127.0.0.5'], ttl => 0 }, 'zero.test' => { a => ['127.0.0.5'], ttl => 0 });
    change($node, add => 'zero.test');
    resolves_to($node, 'zero.test', '5', 'no time at all');
    my $asked = $dns->asked('zero.test');
    sleep 3;
    my $more = $dns->asked('zero.test') - $asked;
    ok($more >= 1 && $more <= 4, 'once in a second at most') or diag("$more times in 3 s");
    is($dns->asked('long.test'), 1, 'the other once');
    is(addresses($node, 'long.test'), '4', 'so it is as it was');
    change($node, remove => $_) for qw(long.test zero.test);
    $asked = $dns->asked('zero.test');
    sleep 2.5;
    cmp_ok($dns->asked('zero.test') - $asked, '<=', 1, 'removed it is not asked for any more');
};

for my $case ([ 'no such name', { rcode => 'NXDOMAIN' } ], [ 'no address', { a => [] } ]) {
    my ($what, $answer) = @$case;
    # Of what is missing nginx says for how long it holds: as valid does.
    (my $line = resolver_line()) =~ s/;/ valid=1s;/;
    my $node = node(resolver => $line);
    subtest "$what: it is taken out, with one warning" => sub {
        $dns->set('app.test' => { a => [ '127.0.0.2', '127.0.0.3' ] });
        change($node, add => 'app.test');
        resolves_to($node, 'app.test', '2 3', 'two addresses');
        my $from = $node->log_size;
        $dns->set('app.test' => $answer);
        resolves_to($node, 'app.test', '', 'none is left');
        is(answers($node, 2), '502', 'requests are answered 502');
        like($node->wait_log(qr/no eligible server/, 5, $from), qr/: 1 unresolved/, 'and the log says why');
        is(server($node, 'app.test')->{state}, 'unresolved', 'status does');
        is_deeply($node->get('/upstream/health?ns=app')->{json}{data},
            { total_servers => 1, enabled_servers => 1, active_servers => 1, expired_servers => 0 }, 'the name is counted itself');
        my $asked = $dns->asked('app.test');
        ok(wait_until(sub { $dns->asked('app.test') > $asked + 1 }, 30 * time_scale()), 'it is asked for again');
        is(scalar $node->grep_log(qr/\[warn\].*name app\.test:$port in namespace "app" is not found, or has no address/, $from), 1, 'warned of once');
        $dns->set('app.test' => { a => ['127.0.0.4'] });
        resolves_to($node, 'app.test', '4', 'it comes back');
        $dns->set('app.test' => $answer);
        resolves_to($node, 'app.test', '', 'and goes');
        ok(wait_until(sub { 2 == $node->grep_log(qr/\[warn\].*is not found/, $from) }), 'which is another warning');
        $node->log_is_clean;
    };
}

subtest 'a thousand addresses: the lowest 64 are taken' => sub {
    my @all = map { my $n = $_; "127.1." . int($n / 250) . '.' . (1 + $n % 250) } 0 .. 999;
    $dns->set('big.test' => { a => [ reverse @all ], ttl => 1 });
    my ($pid) = $node->workers;
    my $from = $node->log_size;
    change($node, add => 'big.test');
    ok(wait_until(sub { 65 == @{ status($node, 'app')->{data} } }), 'the name and 64 addresses');
    is_deeply([ sort map { $_->{host} } grep { $_->{name} } @{ status($node, 'app')->{data} } ], [ sort @all[ 0 .. 63 ] ], 'which are the lowest');
    cmp_ok($dns->asked('big.test', 'A', 'tcp'), '>', 0, 'asked by TCP');
    ok($node->wait_log(qr/\[warn\].*name big\.test:$port in namespace "app" has too many addresses: the lowest 64 are taken, 936 are left out/, 5, $from), 'a warning');

    my $rss = sub { my $sum = 0; $sum += $_ for map { slurp("/proc/$_/status") =~ /^VmRSS:\s+(\d+)/m } $node->workers; return $sum };
    my $asked = $dns->asked('big.test', 'A', 'tcp');
    my $before = $rss->();
    my $slowest = 0;
    wait_until(sub {
        my $began = time;
        $node->get('/upstream/health?ns=app');
        $slowest = time - $began if time - $began > $slowest;
        $dns->asked('big.test', 'A', 'tcp') >= $asked + 4;
    }, 40 * time_scale());
    is($dns->asked('big.test', 'A', 'tcp') >= $asked + 4, 1, 'asked again and again');
    is(said(qr/big\.test.*too many addresses/, $from), 1, 'it is said once');
    is(said(qr/added in namespace.*big\.test/, $from), 64, 'and nobody is added twice');
    cmp_ok($rss->() - $before, '<', 1024, 'the workers do not grow') or diag("from $before kB to " . $rss->());
    cmp_ok($slowest, '<', 0.5 * time_scale(), 'nor do they stand still');
    change($node, remove => 'big.test');
    is_deeply(status($node, 'app')->{data}, [], 'removed with all of them');
};

subtest 'the unspecified address, and those that are not allowed, are left out' => sub {
    $dns->set(
        'zero.test' => { a => ['0.0.0.0'] },
        'part.test' => { a => [ '0.0.0.0', '127.0.0.2', '10.9.8.7', '127.0.0.3' ] },
    );
    my $from = $node->log_size;
    change($node, add => $_) for qw(zero.test part.test);
    resolves_to($node, 'part.test', '2 3', 'the others are taken');
    is(addresses($node, 'zero.test'), '', 'of one that has no other, none');
    is(answers($node), '2 3', 'requests go to those');
    sleep 2.5;
    is(said(qr/\[warn\].*name $_\.test:$port in namespace "app" has the unspecified address, which is left out/, $from), 1,
        "$_ is warned of once") for qw(zero part);
    is(said(qr/\[warn\].*name part\.test:$port in namespace "app" has addresses that are not in allow_servers and left out: 10\.9\.8\.7/, $from), 1, 'so is what is not allowed');
    change($node, remove => $_) for qw(zero.test part.test);
};

subtest 'silence of a name is that of its addresses' => sub {
    my $ttl = 1 * time_scale();
    my $other = node(settings => "heartbeat_ttl ${ttl}s; cleanup_interval 100ms; remove_after " . 4 * $ttl . 's;');
    $dns->set('app.test' => { a => [ '127.0.0.2', '127.0.0.3' ] });
    change($other, add => 'app.test');
    resolves_to($other, 'app.test', '2 3', 'two addresses');
    for (1 .. 4) {
        sleep $ttl / 2;
        change($other, refresh => 'app.test');
    }
    is(answers($other), '2 3', 'while it is heard of they take requests');
    my $from = $other->log_size;
    sleep 1.2 * $ttl;
    is(answers($other, 1), '502', 'silent, they take none');
    like($other->wait_log(qr/no eligible server/, 5, $from), qr/: 2 expired/, 'expired');
    is(scalar $other->grep_log(qr/ expired in namespace/, $from), 1, 'which is said of the name, once');
    change($other, refresh => 'app.test');
    is(answers($other), '2 3', 'its next heartbeat brings both back');
    ok(wait_until(sub { !@{ status($other, 'app')->{data} } }, 20 * time_scale()), 'after remove_after all are forgotten');
    $other->log_is_clean;
};

$node->log_is_clean;
done_testing;
