# Backup servers: only when no other server is eligible, whatever the reason.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my %backend = map { $_ => RegistryTest->backend(name => $_) } qw(a b x y);
my ($x, $y) = map { 'server ' . $backend{$_}->address . ' backup' } qw(x y);
my $ttl = 0.5 * time_scale();
my $node = RegistryTest->nginx(
    workers => 1,
    http => qq{
        registry main  256k { heartbeat_ttl 0; }
        registry short 256k { heartbeat_ttl @{[ 1000 * $ttl ]}ms; }
        upstream least_conn  { registry main; $x; $y; }
        upstream round_robin { registry main; registry_balance round_robin; $x weight=2; $y; }
        upstream limited     { registry main; $x max_conns=1; }
        upstream expiring    { registry short; $x; }
        upstream alone       { registry main; $x; }
    },
    server => q{
        location /upstream/ { registry_api main; }
        location /short/    { registry_api short; }
    } . join('', map { "location /to/$_ { proxy_pass http://$_; }\n" } qw(least_conn round_robin limited expiring alone)),
);

sub change {
    my ($endpoint, $ns, $name, %more) = @_;
    my $r = api($node, $endpoint, { ns => $ns, host => $backend{$name}->host, port => $backend{$name}->port, %more });
    is($r->{status}, 200, "$endpoint $name") or diag($r->{body});
    return;
}
# Who answers so many requests: "a=2 b=1".
sub answers {
    my ($ns, $count) = @_;
    my %n;
    for (1 .. $count) {
        my $r = $node->get("/to/$ns");
        $n{ $r->{headers}{'x-backend'} || $r->{status} }++;
    }
    return join ' ', map { "$_=$n{$_}" } sort keys %n;
}
sub hold {
    my ($ns) = @_;
    my $before = connections($node, $ns);
    my $client = $node->client;
    $client->send("GET /to/$ns?hang=1 HTTP/1.1\r\nHost: x\r\n\r\n");
    wait_until(sub { connections($node, $ns) > $before });
    return $client;
}

for my $ns (qw(least_conn round_robin)) {
    subtest $ns => sub {
        my $backups = $ns eq 'least_conn' ? 'x=3 y=3' : 'x=4 y=2';
        is(answers($ns, 6), $backups, 'without any other the backups share the requests, by weight');
        change(add => $ns, $_) for qw(a b);
        is(answers($ns, 6), 'a=3 b=3', 'when others come they have none');
        change(drain => $ns, 'a');
        is(answers($ns, 4), 'b=4', 'one other is enough');
        change(weight => $ns, 'b', weight => 0);
        is(answers($ns, 6), $backups, 'draining and weight 0: they take over');
        change(weight => $ns, 'b', weight => 1);
        is(answers($ns, 4), 'b=4', 'a weight again: they step back');
        change(toggle => $ns, 'b', action => 'disable');
        is(answers($ns, 6), $backups, 'disabled');
        change(toggle => $ns, $_, action => 'enable') for qw(a b);
        is(answers($ns, 6), 'a=3 b=3', 'enabled');

        change(add => $ns, 'a', max_conns => 1);
        change(add => $ns, 'b', max_conns => 1);
        my @clients = map { hold($ns) } 1 .. 2;
        is(answers($ns, 6), $backups, 'the others at max_conns');
        my $on_backup = hold($ns);
        $_->close for @clients;
        ok(wait_until(sub { connections($node, $ns) == 1 }), 'who end');
        is(answers($ns, 4), 'a=2 b=2', 'while a backup still has one');
        $on_backup->close;

        $backend{$_}->stop for qw(a b);
        like(answers($ns, 6), qr/^x=\d y=\d$/, 'the others gone: the first request tries them, then they are left alone');
        $backend{$_}->start for qw(a b);
        is(api($node, reset => { ns => $ns })->{status}, 200, 'forgiven');
        is(answers($ns, 6), 'a=3 b=3', 'and back');
        change(remove => $ns, $_) for qw(a b);
        is(answers($ns, 6), $backups, 'removed');
        change(toggle => $ns, 'x', action => 'disable');
        is(answers($ns, 3), 'y=3', 'a backup that is disabled');
        ok(wait_until(sub { connections($node, $ns) == 0 }), 'nothing in flight');
    };
}

subtest 'a backup has limits as well' => sub {
    change(add => 'limited', 'a', max_conns => 1);
    my @clients = map { hold('limited') } 1 .. 2;
    my $servers = servers($node, 'limited');
    is(join(' ', map { $servers->{ $backend{$_}->address }{connections} } qw(a x)), '1 1', 'one in flight on each');
    is(answers('limited', 2), '502=2', 'no room for more');
    like(($node->grep_log(qr/namespace "limited"/))[-1], qr/: 2 at max_conns while/, 'the backup is counted too');
    $_->close for @clients;
    ok(wait_until(sub { connections($node, 'limited') == 0 }), 'nothing in flight');
};

subtest 'the others expired' => sub {
    my $r = $node->post('/short/add', body => form({ host => $backend{a}->host, port => $backend{a}->port }));
    is($r->{status}, 200, 'one is added');
    is(answers('expiring', 3), 'a=3', 'and has the requests');
    sleep 1.2 * $ttl;
    is(answers('expiring', 3), 'x=3', 'until it is silent for too long');
    $node->post('/short/refresh', body => form({ host => $backend{a}->host, port => $backend{a}->port }));
    is(answers('expiring', 3), 'a=3', 'and again from its next heartbeat');
};

subtest 'a backup that is alone is an only server' => sub {
    $backend{x}->stop;
    is(answers('alone', 3), '502=3', 'it fails');
    is(servers($node, 'alone')->{ $backend{x}->address }{fails}, 3, 'each time it is asked');
    $backend{x}->start;
    is(answers('alone', 2), 'x=2', 'and as soon as it is there it answers');
};

$node->log_is_clean;
done_testing;
