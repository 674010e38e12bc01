# Answers about thousands of servers are made in slices: nobody waits for them, no client
# makes a worker keep all of their text, and servers may come and go meanwhile.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::Bin/lib";
use RegistryTest;
use RegistryTest::Process qw(binary_info find_binary);
use Socket qw(SOL_SOCKET SO_RCVBUF);

my $MANY = 10_000;

my $version = binary_info(find_binary())->{number};
my $h2 = $version >= 1.025001 ? 'listen 127.0.0.1:%%PORT_h2%%; http2 on;' : 'listen 127.0.0.1:%%PORT_h2%% http2;';
my $node = RegistryTest->nginx(
    workers => 1,
    http => "registry main 16m { heartbeat_ttl 1h; }
        registry silent 16m { heartbeat_ttl 1s; cleanup_interval 1h; on_expire remove; }
        keepalive_requests 100000;
        server { $h2 location /upstream/ { registry_api main; } }
        # The kernel takes little: the rest waits until the client reads.
        server { listen 127.0.0.1:%%PORT_slow%% sndbuf=32k; location /upstream/ { registry_api main; } }
        server { listen 127.0.0.1:%%PORT_hasty%% sndbuf=32k; send_timeout 100ms; location /upstream/ { registry_api main; } }",
    server => 'location /upstream/ { registry_api main allow_get; }
        location /silent/ { registry_api silent allow_get; }
        location /small { return 200 "small"; }
        location /gzip/ { registry_api main; gzip on; gzip_types application/json; gzip_proxied any; }
        location /cleans-up { default_type text/html; ssi on; return 200 \'<!--# include virtual="/upstream/status?ns=many" --><!--# include virtual="/silent/cleanup?ns=included" -->\'; }
        location /page { default_type text/html; ssi on; return 200 \'<one><!--# include virtual="/upstream/status?ns=many" --></one><!--# include virtual="/upstream/status?ns=many" --><!--# include virtual="/upstream/health?ns=many" -->end\'; }',
);

sub host { my ($n) = @_; return join '.', 10, map { $n >> $_ & 255 } 16, 8, 0 }

# Many changes, over a few connections.
sub change {
    my ($path, $namespace, @hosts) = @_;
    while (my @some = splice @hosts, 0, 500) {
        my $requests = join '', map {
            "GET $path?ns=$namespace&host=$_&port=80 HTTP/1.1\r\nHost: x\r\n"
                . ($_ eq $some[-1] ? "Connection: close\r\n\r\n" : "\r\n")
        } @some;
        my $done = () = raw($node->address, $requests) =~ /^HTTP\/1\.1 200 /mg;
        die "$path: $done of " . @some . " were done\n" if $done != @some;
    }
    return;
}
sub add    { my ($namespace, @hosts) = @_; return change('/upstream/add',    $namespace, @hosts) }
sub remove { my ($namespace, @hosts) = @_; return change('/upstream/remove', $namespace, @hosts) }

my $number = qr/(?:0|[1-9]\d*)/;
my $time   = qr/$number\.\d{3}/;
my $server = qr/\{"addr":"([\d.]+):80","host":"\1","port":80,"namespace":"[a-z]+","connections":0,"weight":1,"max_conns":1000
    ,"enabled":true,"is_active":true,"state":"up","last_heartbeat":$time,"time_since_heartbeat":$time,"created_at":$time
    ,"updated_at":$time,"disabled_at":null,"disabled_reason":null,"requests":0,"fails":0,"static":false,"backup":false,"local_connections":0,"name":null,"health":null\}/x;

# The hosts in a list, in its order. Dies when it is not the JSON that it has to be, to the
# last byte. (A decoder in Perl takes seconds for it.)
sub hosts_of {
    my ($text) = @_;
    my @hosts;
    $text =~ /\G\{"code":200,"message":"Success","data":\[/gc or die 'begins with ' . substr($text, 0, 80) . "\n";
    while ($text =~ /\G$server/gc) {
        push @hosts, $1;
        $text =~ /\G,(?=\{)/gc or last;
    }
    my $at = pos($text) || 0;
    $text =~ /\G\],"total":($number),"timestamp":$time\}\n\z/gc or die "at $at: " . substr($text, $at, 80) . "\n";
    die "total is $1 with " . @hosts . " servers\n" if $1 != @hosts;
    return @hosts;
}

# Head and body, made whole from its chunks.
sub unchunk {
    my ($message) = @_;
    my ($head, $rest) = $message =~ /\A(.*?\r\n\r\n)(.*)\z/s or die "no response: $message\n";
    return ($head, $rest) unless $head =~ /^Transfer-Encoding: chunked\r$/m;
    my $body = '';
    while (1) {
        $rest =~ /\G([0-9a-f]+)\r\n/gc or die 'no chunk at ' . pos($rest) . "\n";
        my $length = hex $1;
        $body .= substr $rest, pos($rest), $length;
        pos($rest) += $length;
        $rest =~ /\G\r\n/gc or die "no end of a chunk\n";
        last unless $length;
    }
    return ($head, $body, substr $rest, pos $rest);
}

sub ask {
    my ($path, %opt) = @_;
    my $method = $opt{method} || 'GET';
    return "$method $path HTTP/" . ($opt{version} || '1.1') . "\r\nHost: x\r\n" . ($opt{close} ? "Connection: close\r\n" : '') . "\r\n";
}

sub whole {
    my ($path, %opt) = @_;
    return unchunk(raw($node->address, ask($path, %opt, close => 1)));
}

# A client that has asked and reads only what it must to see that the answer has begun.
sub begin {
    my ($path, $server) = @_;
    my $client = RegistryTest->client($node->address($server || 'slow'));
    $client->open;
    # Otherwise the kernel takes more and more.
    setsockopt $client->socket, SOL_SOCKET, SO_RCVBUF, 200_000 or die "SO_RCVBUF: $!\n";
    $client->send(ask($path, close => 1));
    return { client => $client, text => $client->read_some };
}
sub finish {
    my ($begun) = @_;
    while (defined(my $more = $begun->{client}->read_some)) { $begun->{text} .= $more }
    my (undef, $body) = unchunk($begun->{text});
    return $body;
}

# Two lists of thousands are the same; says where they are not.
sub same {
    my ($got, $expected, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($at) = grep { ($got->[$_] || '') ne ($expected->[$_] || '') } 0 .. (@$got > @$expected ? $#$got : $#$expected);
    ok(!defined $at, $name) or diag(sprintf '%d and %d; at %d: %s and %s', scalar @$got, scalar @$expected, $at,
        map { defined $_->[$at] ? $_->[$at] : 'none' } $got, $expected);
    return;
}

sub open_files { my ($pid) = @_; my @files = glob "/proc/$pid/fd/*"; return scalar @files }
sub resident { my ($pid) = @_; my ($kb) = slurp("/proc/$pid/status") =~ /^VmRSS:\s*(\d+)/m; return $kb * 1024 }

my @many = map { host($_) } 1 .. $MANY;
add(many => @many);
add(few  => @many[0 .. 255]);

subtest 'a long list is sent as it is made, in chunks' => sub {
    my ($head, $body) = whole('/upstream/status?ns=many');
    same([ hosts_of($body) ], \@many, 'each server once, in the order in which they came');
    like($head, qr/\AHTTP\/1\.1 200 OK\r\n/, 'with 200');
    unlike($head, qr/^Content-Length/m, 'nobody knows its length before the end');
    like($head, qr/^Content-Type: application\/json; charset=utf-8\r$/m, 'it is JSON');
    like($head, qr/^Cache-Control: no-store\r$/m, 'that is not to be kept');
};

subtest 'one of no more than 256 servers has a length' => sub {
    my ($head, $body) = whole('/upstream/status?ns=few');
    is(scalar(hosts_of($body)), 256, 'all servers');
    like($head, qr/^Content-Length: @{[length $body]}\r$/m, 'the length is told');
};

subtest 'for every kind of client' => sub {
    my ($head, $body) = whole('/upstream/status?ns=many', version => '1.0');
    is(scalar(hosts_of($body)), $MANY, 'HTTP/1.0');
    unlike($head, qr/^Transfer-Encoding|^Content-Length/m, 'whose end is that of the connection');

    my $both = raw($node->address, ask('/upstream/status?ns=many', method => 'HEAD') . ask('/small', close => 1));
    like($both, qr/\AHTTP\/1\.1 200 OK\r\n(?:[^\r]+\r\n)+\r\nHTTP\/1\.1 200 OK\r\n(?:[^\r]+\r\n)+\r\nsmall\z/, 'HEAD: no body, and the connection goes on');

    my $rest = raw($node->address, ask('/upstream/status?ns=many') . ask('/upstream/health?ns=many') . ask('/upstream/status?ns=many', close => 1));
    my @got;
    while (length $rest) {
        my ($head, $body, $after) = unchunk($rest);
        ($body, $after) = (substr($body, 0, $1), substr $body, $1) if $head =~ /^Content-Length: (\d+)/m;
        push @got, $body;
        $rest = $after;
    }
    is(scalar(@got), 3, 'pipelined: three answers');
    is(scalar(hosts_of($got[$_])), $MANY, 'a list') for 0, 2;
    like($got[1], qr/"total_servers":$MANY,/, 'and what stands between them');

    my $r = curl('--http2-prior-knowledge', $node->url('/upstream/status?ns=few', 'h2'));
    is(scalar(hosts_of($r->{body})), 256, 'HTTP/2, short');
    my $dir = temp_dir();
    my @urls = map { ('-o', "$dir/$_", $node->url('/upstream/status?ns=many', 'h2')) } 1 .. 3;
    is(system('curl', '-sS', '-m', 20 * time_scale(), '--http2-prior-knowledge', '--parallel', '--parallel-immediate', '--no-progress-meter', @urls), 0, 'HTTP/2: three at a time');
    is(scalar(hosts_of(slurp("$dir/$_"))), $MANY, 'a list') for 1 .. 3;

    is(system('curl', '-sS', '-m', 20 * time_scale(), '--compressed', '-D', "$dir/head", '-o', "$dir/body", $node->url('/gzip/status?ns=many')), 0, 'compressed');
    like(slurp("$dir/head"), qr/^Content-Encoding: gzip\r$/m, 'it is');
    is(scalar(hosts_of(slurp("$dir/body"))), $MANY, 'a list');
};

subtest 'in a page that includes two of them' => sub {
    my ($head, $body) = whole('/page');
    my ($one, $two, $health) = $body =~ /\A<one>(.*?\n)<\/one>(.*\}\n)(\{.*?\}\n)end\z/s;
    is(scalar(hosts_of($one)), $MANY, 'the first');
    is(scalar(hosts_of($two)), $MANY, 'the second');
    like($health, qr/"total_servers":$MANY,/, 'and what is after them');
};

subtest 'small requests do not wait for long lists' => sub {
    my $from = length $node->access_log;
    my @clients = map { RegistryTest->client($node->address) } 1 .. 20;
    $_->open for @clients;
    kill STOP => ($node->workers)[0];
    $_->send(ask('/upstream/status?ns=many', close => 1)) for @clients;
    my $small = RegistryTest->client($node->address);
    $small->send(ask('/small', close => 1));
    kill CONT => ($node->workers)[0];
    is($small->response->{body}, 'small', 'it is answered');
    is(scalar(hosts_of((unchunk($_->read_all))[1])), $MANY, 'as the lists are') for @clients;
    my $lines;
    wait_until(sub { my @l = split /\n/, substr $node->access_log, $from; $lines = \@l; return @l == 21 });
    my ($place) = grep { $lines->[$_] =~ m{ /small } } 0 .. $#$lines;
    is($place, 0, 'the one that was sent last ends first');
};

subtest 'servers that come and go while a list is sent' => sub {
    my @begun = map { begin('/upstream/status?ns=many') } 1, 2;
    # Nobody knows where the lists stand; all near their middle go, wherever that is.
    my @gone = grep { /\.[1-9]$/ } @many;
    my %is_gone = map { $_ => 1 } @gone;
    my @new = map { host($_) } 20_001 .. 20_300;
    remove(many => @gone);
    add(many => @new);
    for (@begun) {
        my @hosts = hosts_of(finish($_));
        my %seen;
        $seen{$_}++ for @hosts;
        is(scalar(keys %seen), scalar @hosts, 'none is seen twice');
        same([ grep { !$is_gone{$_} } @hosts ], [ (grep { !$is_gone{$_} } @many), @new ], 'each that stayed or came is there');
    }
    remove(many => @new);
    add(many => @gone);
    same([ (hosts_of((whole('/upstream/status?ns=many'))[1]))[-scalar @gone .. -1] ], \@gone, 'those that come again are the last');
};

subtest 'a namespace that goes while its list is sent' => sub {
    my @hosts = @many[0 .. 2_999];
    add(passing => @hosts);
    my $begun = begin('/upstream/status?ns=passing');
    remove(passing => @hosts);
    my @seen = hosts_of(finish($begun));
    ok(@seen > 0 && @seen < @hosts, 'ends the list early') or diag(scalar @seen);
    my %place = map { $hosts[$_] => $_ } 0 .. $#hosts;
    my @places = map { $place{$_} } @seen;
    is(scalar(grep { $places[$_] <= $places[$_ - 1] } 1 .. $#places), 0, 'those in it are in order');
};

subtest 'clients that go' => sub {
    my ($worker) = $node->workers;
    my $before = open_files($worker);
    my @begun = map { begin('/upstream/status?ns=many') } 1 .. 20;
    $_->{client}->reset for @begun[0 .. 9];
    $_->{client}->close for @begun[10 .. 19];
    my $client = RegistryTest->client($node->address);
    for my $endpoint ('status?ns=many', 'health?ns=many', 'reset?ns=many', 'cleanup?ns=many') {
        $client->send(ask("/upstream/$endpoint"));
        $client->reset;
    }
    my $r = curl('--http2-prior-knowledge', '--limit-rate', '100k', '-m', 0.3, $node->url('/upstream/status?ns=many', 'h2'));
    like($r->{error}, qr/timed out/, 'one that speaks HTTP/2 gives up');
    ok(wait_until(sub { open_files($worker) <= $before }), 'leave nothing behind') or diag(open_files($worker) . " files, $before before");
    is(scalar(hosts_of((whole('/upstream/status?ns=many'))[1])), $MANY, 'others are served');
};

subtest 'clients that do not read' => sub {
    my ($worker) = $node->workers;
    my $before = resident($worker);
    my @begun = map { begin('/upstream/status?ns=many') } 1 .. 200;
    my $each = (resident($worker) - $before) / @begun;
    cmp_ok($each, '<', 100_000, 'cost the worker less than 100 kB each');
    is(scalar(hosts_of(finish($_))), $MANY, 'and may go on') for @begun[0, 199];
    $_->{client}->close for @begun;
};

subtest 'a client that does not read for send_timeout' => sub {
    my $begun = begin('/upstream/status?ns=many', 'hasty');
    my ($worker) = $node->workers;
    my $with = open_files($worker);
    ok(wait_until(sub { open_files($worker) < $with }), 'is left');
    ok(!eval { hosts_of(finish($begun)); 1 }, 'the list is not whole, and cannot be taken for that');
};

subtest 'several lists over one connection of HTTP/2' => sub {
    my $frame = sub {
        my ($type, $flags, $stream, $payload) = @_;
        return substr(pack('N', length $payload), 1) . pack('CCN', $type, $flags, $stream) . $payload;
    };
    my $path = '/upstream/status?ns=many';
    my $headers = "\x82\x86\x04" . chr(length $path) . $path . "\x01\x01x";
    my $client = RegistryTest->client($node->address('h2'));
    $client->send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" . $frame->(4, 0, 0, '') . join '', map { $frame->(1, 5, $_, $headers) } 1, 3, 5);
    my ($bytes, %body, %ended) = ('');
    my $read = sub {
        my ($until) = @_;
        until ($until->()) {
            my $more = $client->read_some;
            die "closed\n" unless defined $more;
            $bytes .= $more;
            while (length $bytes >= 9) {
                my ($high, $low, $type, $flags, $stream) = unpack 'CnCCN', $bytes;
                my $length = $high << 16 | $low;
                last if length $bytes < 9 + $length;
                $body{$stream} .= substr $bytes, 9, $length if $type == 0;
                $ended{$stream} = 1 if $type <= 1 && $flags & 1;
                die "stream $stream is reset\n" if $type == 3;
                substr $bytes, 0, 9 + $length, '';
            }
        }
    };
    # As much as a connection may have under way before its client says that there is more room.
    my $sum = sub { my $sum = 0; $sum += length for values %body; return $sum };
    $read->(sub { $sum->() == 65_535 });
    is($node->get('/small')->{body}, 'small', 'others are served while all of them wait');
    # One is cancelled, the others may go on.
    $client->send($frame->(3, 0, 5, pack 'N', 8) . join '', map { $frame->(8, 0, $_, pack 'N', 1 << 28) } 0, 1, 3);
    $read->(sub { $ended{1} && $ended{3} });
    is(scalar(hosts_of($body{$_})), $MANY, 'a list') for 1, 3;
    ok(!$ended{5}, 'the one cancelled has no end');
};

subtest 'a change goes on to its end when the client has gone' => sub {
    my @hosts = @many[0 .. 4_999];
    # What the page includes first finds that the client is gone, and ends all of the page.
    for my $one ([ plain => '/silent/cleanup?ns=plain' ], [ included => '/cleans-up' ]) {
        my ($namespace, $path) = @$one;
        change('/silent/add', $namespace, @hosts);
        my $known = sub { $node->get("/silent/health?ns=$namespace") };
        ok(wait_until(sub { $known->()->{json}{data}{expired_servers} == @hosts }), "$namespace: all are silent");
        my $client = RegistryTest->client($node->address);
        $client->send(ask($path));
        # Not before the change has begun.
        wait_until(sub { my $r = $known->(); return $r->{status} == 404 || $r->{json}{data}{total_servers} < @hosts }, undef, 0.001);
        $client->reset;
        ok(wait_until(sub { $known->()->{status} == 404 }), 'all are removed') or diag($known->()->{body});
    }
};

subtest 'an old worker finishes its lists' => sub {
    my $begun = begin('/upstream/status?ns=many');
    $node->reload(wait => 0);
    ok(wait_until(sub { my @old = $node->old_workers; @old == 1 }), 'one is on its way out');
    is(scalar(hosts_of(finish($begun))), $MANY, 'the list is whole');
    ok(wait_until(sub { my @old = $node->old_workers; !@old }), 'then it goes');
};

$node->log_is_clean;
done_testing;
