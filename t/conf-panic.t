# panic_threshold in the block registry NAME SIZE { }.

use FindBin;
use Test::Nginx::Socket;
require "$FindBin::Bin/conf-file.pl";

plan tests => 23;

run_tests();

__DATA__

=== TEST 1: a share
--- conf
registry main 128k { panic_threshold 50%; }
upstream backend { registry main; }
--- talk
> POST /upstream/add port=1
< 200 {...}



=== TEST 2: the least and the most
--- conf
registry main 128k { panic_threshold 1%; }
registry other 128k { panic_threshold 99%; }
upstream backend { registry main; }
--- talk
> POST /upstream/add port=1
< 200 {...}



=== TEST 3: off
--- conf
registry main 128k { panic_threshold off; }
registry other 128k { panic_threshold 0; }
registry third 128k { panic_threshold 0%; }
upstream backend { registry main; }
--- talk
> POST /upstream/add port=1
< 200 {...}



=== TEST 4: what is no share
--- conf
registry main 128k {
    panic_threshold half;
}
--- refused: invalid value "half" in "panic_threshold": write it as 50%, it may be 1% to 99%, or 0 or off in FILE:2



=== TEST 5: a number alone
--- conf
registry main 128k {
    panic_threshold 50;
}
--- refused: invalid value "50" in "panic_threshold": write it as 50%, it may be 1% to 99%, or 0 or off in FILE:2



=== TEST 6: more than all is never
--- conf
registry main 128k {
    panic_threshold 100%;
}
--- refused: invalid value "100%" in "panic_threshold": write it as 50%, it may be 1% to 99%, or 0 or off in FILE:2



=== TEST 7: a fraction, a sign, nothing
--- conf
registry main 128k { panic_threshold 0.5%; }
--- refused: invalid value "0.5%" in "panic_threshold": write it as 50%, it may be 1% to 99%, or 0 or off in FILE:1



=== TEST 8: a sign
--- conf
registry main 128k { panic_threshold -5%; }
--- refused: invalid value "-5%" in "panic_threshold": write it as 50%, it may be 1% to 99%, or 0 or off in FILE:1



=== TEST 9: nothing
--- conf
registry main 128k { panic_threshold %; }
--- refused: invalid value "%" in "panic_threshold": write it as 50%, it may be 1% to 99%, or 0 or off in FILE:1



=== TEST 10: twice
--- conf
registry main 128k {
    panic_threshold 50%;
    panic_threshold 50%;
}
--- refused: "panic_threshold" directive is duplicate in FILE:3
