# A reload that fails, and nginx -t, change nothing of what runs.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;

my $node = RegistryTest->nginx(workers => 2);
my ($a, $b, $c) = map { RegistryTest->backend(name => $_) } qw(a b c);

# Two registries, a static member, an upstream that names a namespace.
my %GOOD = (
    main  => 'registry main 512k { heartbeat_ttl 1h; cleanup_interval 50ms; }',
    spare => 'registry spare 256k { }',
    backend => 'upstream backend { registry main; server ' . $a->address . ' weight=3 max_conns=20; }',
    named => 'upstream named { registry main; }',
    http  => '',
);
sub parts {
    my %part = (%GOOD, @_);
    return (
        http => join("\n", map { $part{$_} } sort keys %part),
        server => 'location /upstream/ { registry_api main; }
            ' . ($part{spare} ? 'location /spare/ { registry_api spare; }' : '') . '
            location / { proxy_pass http://backend; }',
    );
}
$node->set_conf(parts());
$node->reload or die;

sub picture {
    my %all = map { $_ => $node->get("/upstream/status?ns=$_")->{json}{data} || 'none' } qw(backend named shop new);
    $all{spare} = $node->get('/spare/status?ns=stock')->{json}{data} || 'none';
    for my $server (map { ref $_ ? @$_ : () } values %all) {
        delete $server->{time_since_heartbeat};
        delete $server->{last_heartbeat} if $server->{addr} eq $a->address;    # members send none
    }
    return \%all;
}

# A registered server beside the static one, another namespace, and another registry.
api($node, 'add', { ns => 'backend', host => $b->host, port => $b->port, weight => 2 });
api($node, 'add', { ns => 'shop', host => '127.0.0.9', port => 9 });
api($node, 'drain', { ns => 'shop', host => '127.0.0.9', port => 9 });
api($node, 'toggle', { ns => 'backend', host => $a->host, port => $a->port, action => 'disable' });
$node->post('/spare/add', body => form({ ns => 'stock', host => '127.0.0.9', port => 9 }));
$node->get('/') for 1 .. 3;

# Requests under way all the time: their counts have to stay as well.
my @slow = map { $node->client } 1 .. 3;
$_->send("GET /?hang=1 HTTP/1.1\r\nHost: x\r\n\r\n") for @slow;
ok(wait_until(sub { connections($node, 'backend') == 3 }), 'servers, and three requests under way');
my $before = picture();
my @workers = $node->workers;
is_deeply($before->{named}, [], 'a namespace without servers');

# All that a configuration can change, in one that cannot be used for another reason.
my %CHANGES = (
    'nothing'                        => [],
    'settings'                       => [ main => 'registry main 512k { heartbeat_ttl 10ms; cleanup_interval 10ms; on_expire remove; }' ],
    'the size of the zone'           => [ main => 'registry main 1m { heartbeat_ttl 10ms; cleanup_interval 10ms; }' ],
    'no static member'               => [ backend => 'upstream backend { registry main; }' ],
    'other static members'           => [ backend => 'upstream backend { registry main; server ' . $a->address . ' weight=9 down; server ' . $c->address . '; }' ],
    'the registered server, static'  => [ backend => 'upstream backend { registry main; server ' . $b->address . ' weight=9 backup; }' ],
    'one upstream less, one more'    => [ named => 'upstream new { registry main; server ' . $c->address . '; }' ],
    'one registry less'              => [ spare => '' ],
    'one registry more'              => [ http => 'registry third 256k { }' ],
);

sub unchanged {
    my ($what) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    is_deeply(picture(), $before, "$what: servers, members, namespaces and counts are as before") or $node->diag_log(5);
    is_deeply([ $node->workers ], \@workers, 'workers too');
}

for my $change (sort keys %CHANGES) {
    subtest "a reload that fails changes nothing: $change" => sub {
        # The log of a virtual server cannot be opened: found before zones are mapped.
        my %parts = (http => '', @{ $CHANGES{$change} });
        my $from = $node->log_size;
        $node->set_conf(parts(%parts, http => "$parts{http} server { listen 127.0.0.1:%%PORT_more%%; access_log /nonexistent/dir/log; }"));
        ok(!$node->reload, 'refused');
        unchanged('a log that cannot be opened');
        is($node->get('/')->{headers}{'x-backend'}, 'b', 'requests go on');
        $before->{backend}[ $before->{backend}[0]{addr} eq $b->address ? 0 : 1 ]{requests}++;
    };
}

subtest 'a reload that fails changes nothing: all of that, and a port in use' => sub {
    # Found when zones are mapped and initialised already.
    my %all = map { @{ $CHANGES{$_} } } 'the size of the zone', 'other static members', 'one upstream less, one more', 'one registry less';
    for my $size ('1m', '512k') {
        my $from = $node->log_size;
        $node->set_conf(parts(%all,
            main => "registry main $size { heartbeat_ttl 10ms; cleanup_interval 10ms; on_expire remove; }",
            http => 'server { listen ' . $a->address . '; }'));
        ok(!$node->reload, 'refused');
        ok($node->wait_log(qr/still could not bind/, 10 * time_scale(), $from), 'nginx gives up the port');
        unchanged("a zone of $size");
    }
};

subtest 'nginx -t of another configuration changes nothing' => sub {
    $node->set_conf(parts());
    for my $change (sort keys %CHANGES) {
        $node->set_conf(parts(@{ $CHANGES{$change} }));
        my $text = $node->conf_text;
        $node->set_conf(parts());
        my ($exit, $said) = $node->test_conf($text);
        is($exit, 0, "$change: the test is successful") or diag($said);
    }
    unchanged('nginx -t');
};

subtest 'after all that a good reload works' => sub {
    ok($node->reload(wait => 'new'), 'a reload');
    is_deeply(picture(), $before, 'it has nothing to change either');
    $_->close for @slow;
    ok(wait_until(sub { connections($node, 'backend') == 0 }), 'the requests that were under way are counted off');
    ok(wait_until(sub { !$node->old_workers }), 'and their workers gone');
    $node->set_conf(parts(map { @{ $CHANGES{$_} } } 'other static members', 'one upstream less, one more', 'one registry less'));
    ok($node->reload, 'and one with changes');
    my %now = map { $_->{addr} => $_ } @{ status($node, 'backend')->{data} };
    is_deeply([ sort keys %now ], [ sort map { $_->address } $a, $b, $c ], 'makes them');
};

$node->log_is_clean(allow => [
    [ qr/\[emerg\] .*open\(\) "\/nonexistent\/dir\/log" failed/, scalar keys %CHANGES ],
    [ qr/\[emerg\] .*bind\(\) to \S+ failed/, 10 ],
    [ qr/\[emerg\] .*still could not bind/, 2 ],
]);
done_testing;
