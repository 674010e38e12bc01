package RegistryTest::Redis;

# A redis-server of the test's own: a free port, its own directory and configuration,
# nothing written to disk unless asked for. And Sentinel and Cluster made of several.
#
#     my $redis = RegistryTest->redis;
#     my $node = RegistryTest->nginx(http => 'registry main 1m { redis ' . $redis->url . '; } ...');
#     $redis->cli(HSET => 'upstream:heartbeat', '10.0.0.1:80', 1);
#     $redis->stop('KILL');
#     $redis->start;

use strict;
use warnings;

use File::Path ();
use JSON::PP ();
use RegistryTest::Process qw(
    free_port temp_dir slurp spew spawn alive stop_process wait_until time_scale find_program
);
use RegistryTest::Resp;
use Test::More ();
use Time::HiRes qw(time);

# All optional:
#   persist    'aof' or 'rdb': what was in it is there again after a restart
#   password   requirepass
#   user       a further user: [NAME, PASSWORD, rules of ACL SETUSER ...]
#   tls        1: takes TLS on a further port, with a certificate of a CA made for the test
#   socket     1: listens on a unix socket too
#   replicaof  the master, another of these
#   maxmemory  bytes (or 5mb); nothing is evicted
#   cluster    1: a node of a cluster
#   env        variables for it, those of RegistryTest->clock perhaps
#   conf       more lines of redis.conf
#   start      0: not yet
sub new {
    my ($class, %opt) = @_;
    my $self = bless { dir => temp_dir(), port => free_port(), %opt }, $class;
    $self->{tls_port} = free_port() if $self->{tls};
    $self->{bus_port} = free_port() if $self->{cluster};
    spew("$self->{dir}/redis.conf", $self->_conf);
    $self->start unless defined $opt{start} && !$opt{start};
    return $self;
}

sub _conf {
    my ($self) = @_;
    my $dir = $self->{dir};
    my @lines = (
        'bind 127.0.0.1', "port $self->{port}", "dir $dir", "logfile $dir/redis.log", "pidfile $dir/redis.pid",
        'daemonize no', 'databases 16', 'enable-debug-command yes', 'shutdown-timeout 0', 'maxmemory-policy noeviction',
        'repl-diskless-sync yes', 'repl-diskless-sync-delay 0', 'repl-ping-replica-period 1', 'appendfsync always',
        'save ' . (($self->{persist} || '') eq 'rdb' ? '3600 1' : '""'),
        'appendonly ' . (($self->{persist} || '') eq 'aof' ? 'yes' : 'no'),
    );
    push @lines, "requirepass $self->{password}", "masterauth $self->{password}" if defined $self->{password};
    if ($self->{user}) {
        my ($name, $password, @rules) = @{ $self->{user} };
        push @lines, "user $name on >$password " . join ' ', @rules;
    }
    push @lines, "unixsocket $dir/redis.sock", 'unixsocketperm 777' if $self->{socket};
    push @lines, "replicaof 127.0.0.1 $self->{replicaof}{port}" if $self->{replicaof};
    push @lines, "maxmemory $self->{maxmemory}" if $self->{maxmemory};
    # With a wall clock that is set back, jemalloc's thread waits for a time that is over, in a loop.
    push @lines, 'jemalloc-bg-thread no' if $self->{env};
    push @lines, 'cluster-enabled yes', "cluster-config-file $dir/nodes.conf", 'cluster-node-timeout 2000',
        "cluster-port $self->{bus_port}", 'cluster-require-full-coverage no' if $self->{cluster};
    if ($self->{tls}) {
        my $certificates = certificates();
        push @lines, "tls-port $self->{tls_port}", "tls-cert-file $certificates/server.pem",
            "tls-key-file $certificates/server.key", "tls-ca-cert-file $certificates/ca.pem", 'tls-auth-clients no';
    }
    return join "\n", @lines, $self->{conf} || (), '';
}

sub port     { return $_[0]{port} }
sub tls_port { return $_[0]{tls_port} }
sub pid      { return $_[0]{pid} }
sub dir      { return $_[0]{dir} }
sub socket   { return "$_[0]{dir}/redis.sock" }
sub address  { return "127.0.0.1:$_[0]{port}" }
sub running  { return $_[0]{pid} && alive($_[0]{pid}) }
sub log      { return slurp("$_[0]{dir}/redis.log") }

# As the directive redis takes it, with the password when there is one; db (0),
# port: another than its own, a proxy's perhaps.
sub url {
    my ($self, %opt) = @_;
    my $who = defined $self->{password} ? ":$self->{password}@" : '';
    return "redis://${who}127.0.0.1:" . ($opt{port} || $self->{port}) . '/' . ($opt{db} || 0);
}

# Returns when it answers. empty => 1: without what it wrote to disk.
sub start {
    my ($self, %opt) = @_;
    die "this Redis runs already\n" if $self->running;
    if ($opt{empty}) {
        File::Path::remove_tree("$self->{dir}/appendonlydir");
        unlink "$self->{dir}/dump.rdb";
    }
    $self->{pid} = spawn([ find_program('redis-server'), "$self->{dir}/redis.conf" ],
        stdout => "$self->{dir}/output", stderr => "$self->{dir}/output", env => $self->{env} || {});
    my $up = wait_until(sub {
        return 1 if !alive($self->{pid});
        return eval { $self->cli('PING') eq 'PONG' };
    }, 10 * time_scale());
    return $self if $up && $self->running;
    Test::More::diag("Redis did not start:\n" . $self->log . slurp("$self->{dir}/output"));
    die "Redis did not start\n";
}

# SIGTERM, or the signal given; the port stays reserved.
sub stop {
    my ($self, $signal) = @_;
    my $pid = delete $self->{pid} or return;
    delete $self->{client};
    return stop_process($pid, $signal || 'TERM' => 5);
}

# SIGSTOP and SIGCONT. Paused, it answers nothing, while the kernel still completes connects.
sub pause {
    my ($self) = @_;
    kill 'STOP', $self->{pid};
    return wait_until(sub { slurp("/proc/$self->{pid}/stat") =~ /.*\)\s+T/s });
}
sub resume { return kill 'CONT', $_[0]{pid} }

# A connection of one's own: see RegistryTest::Resp.
sub client {
    my ($self, %opt) = @_;
    my %password = defined $self->{password} ? (password => $self->{password}) : ();
    return RegistryTest::Resp->new($self->address, %password, %opt);
}

# One command over a connection that is kept, and made anew when it was lost.
sub cli {
    my ($self, @words) = @_;
    my $client = $self->{client} ||= $self->client;
    my $answer = eval { [ $client->call(@words) ] };
    return $answer->[0] if $answer;
    my $error = $@;
    # What Redis itself refuses leaves the connection as it was.
    delete $self->{client} unless $error =~ /^[A-Z]+ /;
    if ($error =~ /has closed|^write to|^read from/) {
        $client = $self->{client} = $self->client;
        return $client->call(@words);
    }
    die $error;
}

# A hash of Redis as one of Perl.
sub hash { my ($self, $key) = @_; return { @{ $self->cli(HGETALL => $key) } } }

# INFO as a hash; what a section has.
sub info {
    my ($self, $section) = @_;
    my $text = $self->cli('INFO', $section || ());
    return { $text =~ /^([^#:\r\n]+):(.*?)\r?$/mg };
}

# Waits until a replica has all that its master has.
sub in_step {
    my ($self) = @_;
    return wait_until(sub {
        my ($mine, $master) = ($self->info('replication'), $self->{replicaof}->info('replication'));
        return $mine->{master_link_status} eq 'up' && $mine->{slave_repl_offset} >= $master->{master_repl_offset};
    }, 10 * time_scale());
}

# The keys of a registry

# The name of a public key.
sub key {
    my ($self, $namespace, $name, %opt) = @_;
    my $prefix = defined $opt{prefix} ? $opt{prefix} : 'upstream';
    my $between = $namespace eq 'default' ? '' : "$namespace:";
    return "$prefix:$between$name";
}

# What the three public keys say of the servers of a namespace (default), by address:
# score, meta (decoded; undef when it is broken or not there) and heartbeat.
sub registry {
    my ($self, $namespace, %opt) = @_;
    $namespace = 'default' unless defined $namespace;
    my ($zset, $meta, $beat) = map { $self->key($namespace, $_, %opt) } qw(servers:zset servers:meta heartbeat);
    my %servers;
    my @scores = @{ $self->cli(ZRANGE => $zset, 0, -1, 'WITHSCORES') };
    while (my ($addr, $score) = splice @scores, 0, 2) { $servers{$addr}{score} = $score }
    my ($metas, $beats) = ($self->hash($meta), $self->hash($beat));
    $servers{$_}{meta} = eval { JSON::PP->new->utf8->decode($metas->{$_}) } for keys %$metas;
    $servers{$_}{heartbeat} = $beats->{$_} for keys %$beats;
    return \%servers;
}

# Registers a server as other programs do: ZADD, HSET and HSET. fields: of the JSON.
sub register {
    my ($self, $namespace, $addr, %fields) = @_;
    my ($host, $port) = $addr =~ /^(.*):(\d+)$/;
    my $now = $self->now;
    my $heartbeat = exists $fields{heartbeat} ? delete $fields{heartbeat} : int $now;
    my %meta = (
        host => $host, port => 0 + $port, weight => 1, max_conns => 1000, enabled => JSON::PP::true(),
        created_at => int $now, updated_at => int $now, last_heartbeat => int $now,
        disabled_at => undef, disabled_reason => undef, %fields,
    );
    my %opt = defined $fields{prefix} ? (prefix => delete $meta{prefix}) : ();
    $self->cli(ZADD => $self->key($namespace, 'servers:zset', %opt), 0, $addr);
    $self->cli(HSET => $self->key($namespace, 'servers:meta', %opt), $addr,
        JSON::PP->new->utf8->canonical->encode(\%meta));
    $self->cli(HSET => $self->key($namespace, 'heartbeat', %opt), $addr, $heartbeat) if defined $heartbeat;
    return;
}

# Changes fields of a server's JSON, as other programs do.
sub change {
    my ($self, $namespace, $addr, %fields) = @_;
    my $key = $self->key($namespace, 'servers:meta');
    my $meta = JSON::PP->new->utf8->decode($self->cli(HGET => $key, $addr));
    $self->cli(HSET => $key, $addr, JSON::PP->new->utf8->canonical->encode({ %$meta, %fields }));
    return;
}

# Takes a server out of the three keys. Out of the sorted set first: while it is there, an entry that is
# gone from servers:meta was lost, and is written again.
sub unregister {
    my ($self, $namespace, $addr) = @_;
    $self->cli(ZREM => $self->key($namespace, 'servers:zset'), $addr);
    $self->cli(HDEL => $self->key($namespace, 'servers:meta'), $addr);
    $self->cli(HDEL => $self->key($namespace, 'heartbeat'), $addr);
    return;
}

# A script that keeps Redis busy, and answers nobody, for so many seconds: the words of the command.
sub busy {
    my ($self, $seconds) = @_;
    my $script = <<'END';
        local function now() local t = redis.call('TIME') return t[1] * 1000000 + t[2] end
        local till, n = now() + ARGV[1] * 1000000, 0
        while n < tonumber(ARGV[2]) and now() < till do n = n + 1 end
        return n
END
    my @command = (EVAL => $script, 0);
    # The clock of newer ones stands still while a script runs: then it is so many turns, as fast as they were
    # when nothing else ran.
    my ($turns, $fastest) = (100_000, 0);
    for (1 .. 6) {
        my $since = time;
        return (@command, $seconds, 1e15) if $self->cli(@command, 0.01, $turns) < $turns;
        my $speed = $turns / (time - $since);
        $fastest = $speed if $speed > $fastest;
    }
    return (@command, 1e6, int($fastest * $seconds));
}

# Redis' own time in seconds.
sub now { my ($self) = @_; my ($s, $us) = @{ $self->cli('TIME') }; return $s + $us / 1e6 }

# Closes the connections that subscribe, as lost messages would be.
sub cut_subscribers { return $_[0]->cli(CLIENT => KILL => TYPE => 'pubsub') }

# Certificates

my $CERTIFICATES;

# The directory with ca.pem, server.pem and server.key (for 127.0.0.1 and localhost), and
# other.pem, a CA that has signed nothing.
sub certificates {
    return $CERTIFICATES if $CERTIFICATES;
    my $dir = temp_dir();
    spew("$dir/names", "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=critical,CA:FALSE\n");
    my @new = qw(openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30);
    _run($dir, @new, '-x509', '-subj', "/CN=$_ of a test", '-keyout', "$dir/$_.key", '-out', "$dir/$_.pem",
        '-addext', 'keyUsage=critical,keyCertSign,cRLSign') for qw(ca other);
    _run($dir, @new, '-subj', '/CN=localhost', '-keyout', "$dir/server.key", '-out', "$dir/server.csr");
    _run($dir, qw(openssl x509 -req -days 30 -CAcreateserial), '-in', "$dir/server.csr", '-CA', "$dir/ca.pem",
        '-CAkey', "$dir/ca.key", '-extfile', "$dir/names", '-out', "$dir/server.pem");
    chmod 0644, "$dir/server.key";
    return $CERTIFICATES = $dir;
}

sub _run {
    my ($dir, @command) = @_;
    my $pid = spawn(\@command, stdout => "$dir/output", stderr => "$dir/output");
    wait_until(sub { !alive($pid) }, 20 * time_scale());
    my $status = RegistryTest::Process::exit_status($pid);
    die "@command:\n" . slurp("$dir/output") unless defined $status && $status == 0;
    return;
}

# Cluster

# So many masters (3) that share all slots; an array of them. Further options as for new.
sub cluster {
    my ($class, %opt) = @_;
    my $count = delete $opt{masters} || 3;
    my @nodes = map { $class->new(%opt, cluster => 1) } 1 .. $count;
    my ($from, $epoch) = (0, 0);
    for my $i (0 .. $#nodes) {
        my $to = int(16384 * ($i + 1) / @nodes) - 1;
        $nodes[$i]->cli(CLUSTER => ADDSLOTSRANGE => $from, $to);
        $nodes[$i]->cli(CLUSTER => 'SET-CONFIG-EPOCH' => ++$epoch);
        $from = $to + 1;
    }
    $nodes[0]->cli(CLUSTER => MEET => '127.0.0.1', $_->{port}, $_->{bus_port}) for @nodes[ 1 .. $#nodes ];
    wait_until(sub {
        !grep {
            my $text = $_->cli(CLUSTER => 'INFO');
            $text !~ /cluster_state:ok/ || $text !~ /cluster_slots_ok:16384/ || $text !~ /cluster_known_nodes:$count\b/;
        } @nodes;
    }, 20 * time_scale()) or die "no cluster came about\n";
    return @nodes;
}

# The one of a cluster that has a key, and the slot.
sub owner {
    my ($class, $key, @nodes) = @_;
    my $slot = $nodes[0]->cli(CLUSTER => KEYSLOT => $key);
    for my $range (@{ $nodes[0]->cli(CLUSTER => 'SLOTS') }) {
        my ($from, $to, $master) = @$range;
        next unless $slot >= $from && $slot <= $to;
        return ((grep { $_->{port} == $master->[1] } @nodes)[0], $slot);
    }
    die "nobody has slot $slot\n";
}

# Moves a slot, with its keys, from one to another.
sub move_slot {
    my ($class, $slot, $from, $to, @nodes) = @_;
    my ($source, $target) = map { $_->cli(CLUSTER => 'MYID') } $from, $to;
    $to->cli(CLUSTER => SETSLOT => $slot, IMPORTING => $source);
    $from->cli(CLUSTER => SETSLOT => $slot, MIGRATING => $target);
    while (my @keys = @{ $from->cli(CLUSTER => GETKEYSINSLOT => $slot, 100) }) {
        $from->cli(MIGRATE => '127.0.0.1', $to->{port}, '', 0, 5000,
            defined $to->{password} ? (AUTH => $to->{password}) : (), KEYS => @keys);
    }
    $_->cli(CLUSTER => SETSLOT => $slot, NODE => $target) for $to, $from, grep { $_ != $to && $_ != $from } @nodes;
    return;
}

1;
