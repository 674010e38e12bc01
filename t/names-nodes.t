# Names outlive workers, reloads and restarts, and are shared with other nodes; addresses are each node's own.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

require "$FindBin::Bin/names.pl";

our ($dns, $port, %backend);
backends(2 .. 4);
sub set_app { $dns->set('app.test' => { a => [ map { "127.0.0.$_" } @_ ] }); return }

# Changes the text of a node's configuration.
sub rewrite {
    my ($node, $pattern, $by) = @_;
    (my $http = $node->{http}) =~ s/$pattern/$by/ or die "there is no $pattern in the configuration\n";
    $node->set_conf(http => $http);
    return;
}

subtest 'the worker that looks names up is killed: another does' => sub {
    set_app(2);
    my $node = node(settings => 'heartbeat_ttl 1h;');
    change($node, add => 'app.test');
    resolves_to($node, 'app.test', '2', 'an address');
    my $killed = 0;
    for my $n (3, 4) {
        # Whichever it is: all of them.
        $killed += $node->workers;
        $node->kill_worker($_) for $node->workers;
        is(answers($node, 4), $n == 3 ? '2' : '3', 'what was known is still there');
        set_app($n);
        resolves_to($node, 'app.test', $n, "then 127.0.0.$n");
    }
    is(answers($node, 4), '4', 'which takes requests');
    $node->log_is_clean(allow => [ [ qr/\[alert\] .*worker process \d+ exited on signal 9/, $killed ] ]);
};

subtest 'reloads: the zone stays, gets another size, loses its resolver' => sub {
    set_app(2, 3);
    my $node = node(settings => 'heartbeat_ttl 1h;');
    change($node, add => 'app.test', weight => 5);
    resolves_to($node, 'app.test', '2 3', 'two addresses');
    change($node, toggle => '127.0.0.2', action => 'disable');
    my $before = server($node, '127.0.0.3')->{created_at};
    my $load = load_start(url => 'http://127.0.0.1:' . $node->port . '/', conns => 4);
    ok($node->reload, 'a reload');
    is(addresses($node), '2 3', 'nothing is lost');
    my $from = $node->log_size;
    rewrite($node, qr/registry main 1m/ => 'registry main 2m');
    ok($node->reload, 'one with another size');
    ok($node->wait_log(qr/3 servers moved to the new zone/, 5, $from), 'so all move');
    is(addresses($node), '2 3', 'nor then');
    my $done = load_stop($load);
    is_deeply($done->{status}, { 200 => $done->{requests} }, 'and no request');
    my $server = server($node, '127.0.0.3');
    is("$server->{created_at} $server->{weight} $server->{name}", "$before 5 app.test:$port", 'each is as it was');
    is(server($node, '127.0.0.2')->{state}, 'down', 'the one that was disabled too');
    set_app(3, 4);
    resolves_to($node, 'app.test', '3 4', 'the name is looked up as before');
    is(answers($node), '3 4', 'and its addresses answer');

    $from = $node->log_size;
    rewrite($node, qr/resolver 127[^;]*;/ => '');
    ok($node->reload, 'one without a resolver');
    ok($node->wait_log(qr/\[warn\].*1 name is registered and there is no resolver to look up addresses: set "resolver" in http/, 5 * time_scale(), $from), 'a warning');
    is(answers($node), '3 4', 'the last addresses go on');
    is(api($node, add => { ns => 'app', host => 'app.test', port => $port })->{status}, 400, 'no name can be added');
    change($node, remove => 'app.test');
    is_deeply(status($node, 'app')->{data}, [], 'but removed');
    is(scalar $node->grep_log(qr/there is no resolver/, $from), 1, 'warned of once');
    $node->log_is_clean;
};

subtest 'a restart with a state file' => sub {
    set_app(2, 3);
    my $node = node(settings => 'heartbeat_ttl 1h; state_file main.json;');
    change($node, add => 'app.test', weight => 5);
    resolves_to($node, 'app.test', '2 3', 'two addresses');
    $node->restart;
    my $file = slurp("$node->{dir}/main.json");
    my @addrs = $file =~ /"addr":"([^"]+)"/g;
    is("@addrs", "app.test:$port", 'the file has the name and nothing else');
    resolves_to($node, 'app.test', '2 3', 'and is looked up at once');
    is(server($node, '127.0.0.2')->{weight}, 5, 'with its settings');
    is(answers($node), '2 3', 'both take requests');
    set_app(4);
    $node->stop;
    $node->start;
    resolves_to($node, 'app.test', '4', 'after the next one it has other addresses');
    $node->log_is_clean;
};

SKIP: {
    my $redis = eval { RegistryTest->redis } or skip 'no Redis', 1;
    subtest 'two nodes, each with a resolver of its own' => sub {
        my $second = RegistryTest->dns;
        set_app(2, 3);
        $second->set('app.test' => { a => [ '127.0.0.3', '127.0.0.4' ] });
        my $settings = 'heartbeat_ttl 1h; redis ' . $redis->url . '; redis_interval 200ms;';
        my $one = node(settings => $settings);
        my $two = node(settings => $settings, resolver => 'resolver ' . $second->address . " ipv6=off;\n");
        my $three = node(settings => $settings, resolver => undef);
        change($one, add => 'app.test', weight => 3);
        resolves_to($one, 'app.test', '2 3', 'the one that it was registered at');
        resolves_to($two, 'app.test', '3 4', 'the other asks its own');
        is(server($two, '127.0.0.4')->{weight}, 3, 'with the settings of the first');
        ok($three->wait_log(qr/1 name is registered and there is no resolver/, 5 * time_scale()), 'a third has none, and says so');
        is(server($three, 'app.test')->{state}, 'unresolved', 'there it has no address');
        is_deeply([ sort keys %{ $redis->registry('app') } ], ["app.test:$port"], 'Redis knows of the name alone');
        change($two, weight => 'app.test', weight => 8);
        ok(wait_until(sub { (server($one, '127.0.0.2') || {})->{weight} == 8 }), 'a weight reaches the addresses at the other node');
        change($two, toggle => 'app.test', action => 'disable');
        ok(wait_until(sub { answers($one, 1) eq '502' }), 'so does a toggle');
        change($one, toggle => 'app.test', action => 'enable');
        ok(wait_until(sub { answers($two) eq '3 4' }), 'both ways');
        my $heard = server($two, '127.0.0.4')->{last_heartbeat};
        sleep 0.3;
        change($one, refresh => 'app.test');
        ok(wait_until(sub { server($two, '127.0.0.4')->{last_heartbeat} > $heard }), 'and a heartbeat');
        # Requests on addresses are nobody else's business.
        $backend{2}->set(delay => 2);
        $one->client->send("GET / HTTP/1.1\r\nHost: x\r\n\r\n") for 1 .. 2;
        sleep 0.6;
        is_deeply([ sort keys %{ $redis->registry('app') } ], ["app.test:$port"], 'under load too');
        $backend{2}->clear;
        change($two, remove => 'app.test');
        ok(wait_until(sub { !grep { @{ status($_, 'app')->{data} } } $one, $two, $three }), 'removed at one it is gone at all');
        $_->log_is_clean for $one, $two, $three;
    };
}

done_testing;
