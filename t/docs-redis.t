# What README.md says of Redis: the user that it makes may do all that nodes and init_redis.sh do
# and is given nothing for nothing, and other programs register servers by the lines shown.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
use RegistryTest::Process qw(spawn exit_status);

my $TOP = "$FindBin::Bin/..";
my $readme = slurp("$TOP/README.md");

my ($line) = $readme =~ /^(ACL SETUSER registry .*)$/m or die "README.md makes no user\n";
my $redis = RegistryTest->redis;
$redis->cli(split ' ', $line);
$redis->cli(CONFIG => 'RESETSTAT');
my $url = 'redis://registry:PASSWORD@127.0.0.1:' . $redis->port . '/0';

my @nodes = map { RegistryTest->nginx(
    workers => 1,
    http => "registry main 1m { redis $url; redis_interval 100ms; redis_tombstone_ttl 1s; on_expire remove; heartbeat_ttl "
        . 2000 * time_scale() . "ms; cleanup_interval 50ms; }\n upstream backend { registry main; }",
    server => 'location /upstream/ { registry_api main; } location / { proxy_pass http://backend; }',
) } 1 .. 2;
my $backend = RegistryTest->backend(name => 'a', delay => 1 * time_scale());
my $here = '127.0.0.1:' . $backend->port;

sub run {
    my ($command, %env) = @_;
    my $out = temp_dir() . '/out';
    my $pid = spawn([ 'bash', '-c', "cd '$TOP'; $command" ], stdout => $out, stderr => $out, env => \%env);
    wait_until(sub { !alive($pid) }, 15 * time_scale());
    is(exit_status($pid), 0, $command) or diag(slurp($out));
    return slurp($out);
}
sub server_on { my ($node, $addr) = @_; return (eval { servers($node, 'backend') } || {})->{$addr} }
sub both_say { my ($what, $code) = @_; ok(wait_until(sub { !grep { !$code->($_) } @nodes }, 8 * time_scale()), $what) }

both_say('both nodes get in', sub { status($_[0], 'backend')->{sync}{connected} });

subtest 'what other programs write' => sub {
    my ($lines) = $readme =~ /^```sh\n(redis-cli ZADD .*?)^```/ms;
    $lines =~ s/^redis-cli /redis-cli -p @{[ $redis->port ]} --user registry /mg;
    is(scalar(() = $lines =~ /^redis-cli/mg), 3, 'three lines');
    run("set -e; $lines", REDISCLI_AUTH => 'PASSWORD');
    both_say('register a server', sub { server_on($_[0], '10.0.0.1:80') });
    $redis->change('backend', '10.0.0.1:80', enabled => JSON::PP::false());
    both_say('and disable it', sub { server_on($_[0], '10.0.0.1:80')->{state} eq 'down' });
    $redis->change('backend', '10.0.0.1:80', enabled => JSON::PP::true());
    both_say('and enable it', sub { server_on($_[0], '10.0.0.1:80')->{enabled} });
    my $before = server_on($nodes[0], '10.0.0.1:80')->{last_heartbeat};
    $redis->cli(HSET => 'upstream:backend:heartbeat', '10.0.0.1:80', 7);
    both_say('another value is a heartbeat, whatever time it is', sub { server_on($_[0], '10.0.0.1:80')->{last_heartbeat} > $before });
    both_say('silence removes it', sub { !server_on($_[0], '10.0.0.1:80') });
};

subtest 'what nodes do' => sub {
    api($nodes[0], 'add', { ns => 'backend', host => '127.0.0.1', port => $backend->port });
    both_say('a server is added', sub { server_on($_[0], $here) });
    my $client = $nodes[1]->client;
    $client->send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    both_say('requests on it are counted everywhere', sub { server_on($_[0], $here)->{connections} });
    is($client->response->{status}, 200, 'it answers');
    for my $change (['refresh'], [ toggle => action => 'disable' ], [ toggle => action => 'enable' ], [ weight => weight => 3 ], ['drain'], ['remove']) {
        my ($endpoint, @more) = @$change;
        is(api($nodes[1], $endpoint, { ns => 'backend', host => '127.0.0.1', port => $backend->port, @more })->{status}, 200, "@$change");
    }
    both_say('it is removed', sub { !server_on($_[0], $here) });
    ok(wait_until(sub { !$redis->cli(EXISTS => 'upstream:sync:graves') }), 'which is forgotten in its time');
};

subtest 'what init_redis.sh does' => sub {
    my $list = spew(temp_dir() . '/servers', "10.0.0.2:80\n");
    run("scripts/init_redis.sh --force --namespace backend $list", REDIS_URL => $url);
    both_say('nodes obey a wipe', sub { $_[0]->error_log =~ /\[notice\].*Redis was emptied on purpose/ });
    like(run('scripts/init_redis.sh --show', REDIS_URL => $url), qr/^\S+ +NAMESPACE|NAMESPACE/, 'what is there is shown');
};
$nodes[1]->quit;
ok(wait_until(sub { status($nodes[0], 'backend')->{sync}{nodes} == 1 }), 'a node leaves');

is_deeply([ map { +{ @$_ }->{object} } @{ $redis->cli(ACL => 'LOG') } ], [], 'the user may do all of that');
# Those two README.md explains itself.
my %used = (role => 1, select => 1);
$used{$_} = 1 for map { /^cmdstat_(\S+)$/ } keys %{ $redis->info('commandstats') };
is(join(' ', grep { !$used{$_} } $line =~ /\+(\S+)/g), '', 'and nothing that nobody does');
unlike($_->error_log, qr/can't be used/, 'no node complains') for @nodes;
$_->log_is_clean for @nodes;
done_testing;
